"""Commands that refuse an option given twice: Click would silently take the last value."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

from smollm2.errors import UserError


class SingleOptionsGroup(TyperGroup):
    """A group of commands whose own options are given once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse_repeated(self, ctx, args)
        return super().parse_args(ctx, args)


class SingleOptionsCommand(TyperCommand):
    """A command whose options are given once, apart from those that take several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse_repeated(self, ctx, args)
        return super().parse_args(ctx, args)


def refuse_repeated(command: Any, ctx: Any, args: list[str]) -> None:
    """Raise `UserError` if `args` has an option of one value, or a switch with an opposite, twice.

    A switch without an opposite, such as --json, may be repeated: it says the same again.
    """
    if ctx.resilient_parsing:  # the shell completes a command that is not whole yet
        return
    _, _, given = command.make_parser(ctx).parse_args(args=list(args))
    options = [parameter for parameter in given if takes_one_value(parameter)]
    for option in options:
        if options.count(option) > 1:
            names = "/".join([option.opts[0], *option.secondary_opts[:1]])
            raise UserError(f"{names} is given twice; give it once.")


def takes_one_value(parameter: Any) -> bool:
    """Whether giving the option again would replace what was given first."""
    if parameter.param_type_name != "option" or parameter.multiple or parameter.count:
        return False
    return not parameter.is_flag or bool(parameter.secondary_opts)
