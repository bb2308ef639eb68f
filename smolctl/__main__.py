from smolctl.cli.app import main

main()
