import dataclasses
import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from smollm2.data import end_of_text_id, train_tokenizer
from smollm2.errors import UserError
from smollm2.evaluation.answers import ItemScore
from smollm2.evaluation.multiple_choice import OneDnnLinear, score_items, summarize
from smollm2.evaluation.tasks import TASKS, Item, question
from smollm2.evaluation.tasks.token_rows import batches, token_row
from smollm2.model.config import ModelConfig
from smollm2.model.transformer import SmolLM2

TINY = ModelConfig(d_model=32, n_heads=4, n_kv_heads=2, n_layers=2, d_ff=64, vocab_size=300)
TINY_MOE = dataclasses.replace(TINY, n_experts=4, n_active_experts=2)
TOKENIZER = train_tokenizer(300, ["the cat sat on the mat and the dog sat on the cat "] * 50)


def wide(config: ModelConfig) -> SmolLM2:
    """A model whose weights are large enough that a token's context decides what follows."""
    model = SmolLM2(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model


MODEL, MOE = wide(TINY), wide(TINY_MOE)


def scores(items, max_len=64, model=MODEL, **options) -> list[ItemScore]:
    """In the order of the items."""
    found = score_items(model, TOKENIZER, items, max_len=max_len, **options)
    return sorted(itertools.chain.from_iterable(found), key=lambda score: score.item)


@torch.no_grad()
def alone(context, continuation, max_len, model=MODEL) -> tuple[float, bool]:
    """Log-likelihood and greediness of one choice by a forward pass of its own over all logits."""
    start = context.rstrip()
    whole = start + context[len(start) :] + continuation
    if start:
        n_before = len(TOKENIZER.encode(start).ids)
        tokens = TOKENIZER.encode(whole).ids
    else:
        n_before = 1
        tokens = [end_of_text_id(TOKENIZER), *TOKENIZER.encode(whole).ids]
    n_scored = len(tokens) - n_before
    tokens = torch.tensor(tokens[-(max_len + 1) :])
    log_probs = model(tokens[None, :-1])[0, -n_scored:].double().log_softmax(dim=-1)
    targets = tokens[-n_scored:]
    nats = log_probs.gather(1, targets[:, None]).sum().item()
    return nats, bool((log_probs.argmax(dim=-1) == targets).all())


def assert_as_alone(items, found, max_len, model=MODEL):
    for item, score in zip(items, found, strict=True):
        pairs = zip(item.contexts, item.continuations, strict=True)
        expected = [alone(*pair, max_len, model) for pair in pairs]
        assert score.log_likelihoods == pytest.approx([nats for nats, _ in expected], abs=1e-4)
        assert score.greedy == tuple(greedy for _, greedy in expected)


@pytest.mark.parametrize("layout", ["<|endoftext|> $A", "$A <|endoftext|>"])
def test_a_tokenizers_template_adds_nothing(layout):
    """Training encodes without it, and an end of text inside a question would part it."""
    adding = Tokenizer.from_str(TOKENIZER.to_str())
    adding.post_processor = TemplateProcessing(single=layout, special_tokens=[("<|endoftext|>", 0)])
    assert 0 in adding.encode("the cat").ids
    for context in ("the cat", ""):
        item = question(context, ["sat", "on the mat"], 0)
        assert token_row(0, item, adding, 64) == token_row(0, item, TOKENIZER, 64)


words = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mat.", "Ünö", "x"]), max_size=12)
texts = st.builds(str.__add__, words.map(" ".join), st.sampled_from(["", " ", " \n"]))
endings = st.lists(st.sampled_from(["the", "cat", "mat.", "猫"]), max_size=3).map(" ".join)


@st.composite
def any_item(draw) -> Item:
    n = draw(st.integers(2, 5))
    contexts = draw(
        st.lists(texts, min_size=n, max_size=n) | texts.map(lambda text: [text] * n),
    )
    continuations = draw(
        st.lists(endings, min_size=n, max_size=n) | endings.map(lambda text: [text] * n),
    )
    spaced = tuple(" " + text for text in continuations)
    return Item(tuple(contexts), spaced, draw(st.integers(0, n - 1)))


@given(
    items=st.lists(any_item(), min_size=1, max_size=6),
    max_len=st.integers(16, 80),
    batch_size=st.none() | st.integers(1, 6),
)
@example(items=[question("", ["", ""], 0)], max_len=16, batch_size=1)  # nothing but a space
@example(items=[question("the cat", ["the", "mat."], 1)], max_len=16, batch_size=None)
@example(items=[question("the cat " * 30, ["the", "mat. the"], 1)], max_len=16, batch_size=None)
@settings(max_examples=60)
def test_shared_contexts_score_as_choices_alone(items, max_len, batch_size):
    assert_as_alone(items, scores(items, max_len, batch_size=batch_size), max_len)


def test_a_mixture_of_experts_scores_as_choices_alone():
    items = random_items(8)
    assert_as_alone(items, scores(items, model=MOE, batch_size=3), 64, MOE)


def random_items(n: int) -> list[Item]:
    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(["the", "cat", "sat", "on", "mat."], k=rng.randint(low, high)))

    return [question(text(1, 40), [text(1, 5) for _ in range(4)], 0) for _ in range(n)]


def test_scores_depend_on_neither_batches_nor_order():
    items = random_items(12)
    expected = scores(items, batch_size=1)
    assert len({score.log_likelihoods for score in expected}) == 12
    turned = items[::-1]
    for batch_size, order in itertools.product((None, 2, 5, 100), (items, turned)):
        found = scores(order, batch_size=batch_size)
        for score, other in zip(expected, found if order is items else found[::-1], strict=True):
            assert score.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-4)
            assert score.greedy == other.greedy


def test_the_context_changes_the_score():
    near, far = scores([question("the cat sat", ["on"] * 2, 0), question("x", ["on"] * 2, 0)])
    assert abs(near.log_likelihoods[0] - far.log_likelihoods[0]) > 0.1


def test_fp32_products_go_through_onednn_where_that_is_faster():
    with torch.profiler.profile() as profile:
        scores(random_items(1))
    used = {event.key for event in profile.key_averages()}
    assert ("mkldnn::_linear_pointwise" in used) == OneDnnLinear.available
    assert ("aten::linear" in used) != OneDnnLinear.available


def test_onednn_is_as_exact_and_takes_a_bias():
    x, weight, bias = torch.randn(2, 5, 700), torch.randn(64, 700), torch.randn(64)
    exact = F.linear(x.double(), weight.double(), bias.double())
    with torch.inference_mode(), OneDnnLinear():
        found = [F.linear(x, weight, bias), F.linear(x, weight) + bias]
    for y in found:
        torch.testing.assert_close(y.double(), exact, atol=1e-4, rtol=1e-5)


class Quantized(torch.Tensor):
    """Stands for a weight with a product of its own."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return (
            "its own product"
            if func is F.linear
            else super().__torch_function__(func, types, args, kwargs)
        )


def test_other_products_are_left_alone():
    x, weight = torch.randn(5, 8), torch.randn(4, 8)
    with torch.inference_mode(), torch.profiler.profile() as profile, OneDnnLinear():
        assert F.linear(x, weight.as_subclass(Quantized)) == "its own product"
        F.linear(x.bfloat16(), weight.bfloat16())
        F.linear(input=x, weight=weight)
    assert "mkldnn::_linear_pointwise" not in {event.key for event in profile.key_averages()}


def test_positions_and_mask_of_plain_text_change_nothing():
    tokens = torch.randint(0, 300, (2, 9))
    positions = torch.arange(9).expand(2, 9)
    mask = torch.ones(2, 9, 9, dtype=torch.bool).tril()
    found, _ = MODEL.hidden(tokens, positions, mask)
    torch.testing.assert_close(found, MODEL.hidden(tokens)[0], atol=1e-5, rtol=1e-5)


def test_what_choices_share_is_one_row_and_computed_once():
    item = question("the cat sat on the mat.", ["the mat.", "the x"], 0)
    row = token_row(0, item, TOKENIZER, 64)
    before = len(TOKENIZER.encode("the cat sat on the mat. the").ids)
    whole = [len(TOKENIZER.encode(item.contexts[0] + text).ids) for text in item.continuations]
    # The last token of a choice is predicted, never read.
    assert len(row.tokens) == before + sum(n - 1 - before for n in whole)
    assert len(row.scored) == len(row.targets) == sum(row.n_scored)


def test_batches_are_filled_by_length_and_bounded():
    items = random_items(40)
    rows = [token_row(i, item, TOKENIZER, 512) for i, item in enumerate(items)]
    found = list(batches(rows, max_tokens=600))
    assert sorted(item.index for batch in found for item in batch) == list(range(40))
    widths = [len(item.tokens) for batch in found for item in batch]
    assert widths == sorted(widths, reverse=True)
    for batch, following in itertools.pairwise(found):
        assert len(batch[0].tokens) * len(batch) <= 600
        assert len(batch[0].tokens) * (len(batch) + len(following)) > 600


def test_an_item_longer_than_a_batch_has_one_to_itself():
    rows = [token_row(i, item, TOKENIZER, 512) for i, item in enumerate(random_items(5))]
    assert [len(batch) for batch in batches(rows, max_tokens=1)] == [1] * 5
    assert [len(batch) for batch in batches(rows, max_items=2)] == [2, 2, 1]


def test_items_already_scored_are_skipped():
    items = random_items(6)
    found = scores(items, skip={0, 3})
    assert [score.item for score in found] == [1, 2, 4, 5]
    for score, expected in zip(found, scores(items[1:3] + items[4:]), strict=True):
        assert score.log_likelihoods == pytest.approx(expected.log_likelihoods, abs=1e-4)


def test_characters_and_bytes_are_those_of_the_choice_and_of_the_scored_text():
    (score,) = scores([Item(("the  ", "the"), (" Ünö", "  x"), 0)])
    assert score.characters == (3, 2)
    assert score.n_bytes == (2 + 1 + 5, 3)


def test_a_choice_may_be_as_long_as_the_context_length_and_no_longer():
    item = question("the cat", ["qwertyuiop", "the"], 0)
    longest = len(TOKENIZER.encode(" qwertyuiop").ids)
    assert_as_alone([item], scores([item], longest), longest)
    with pytest.raises(UserError, match=f"item 0 has {longest} tokens"):
        scores([item], longest - 1)


def test_a_choice_longer_than_the_context_length_is_named_by_its_item():
    with pytest.raises(UserError, match=r"item 1 has \d+ tokens, more than the context length 8"):
        scores([question("a", ["b", "c"], 0), question("a", ["b", "qwertyuiop"], 0)], max_len=8)


def test_a_continuation_without_tokens_is_refused():
    with pytest.raises(UserError, match="item 0 adds no token"):
        scores([Item(("the", "the"), ("", " cat"), 0)])


def test_a_tokenizer_larger_than_the_model_is_refused():
    big = train_tokenizer(
        400, [f"{a}{b}{a} " for a in "abcdefghijklm" for b in "nopqrstuvwxyz"] * 9
    )
    assert big.get_vocab_size() > 300
    with pytest.raises(UserError, match="the tokenizer that the model was trained with"):
        next(score_items(MODEL, big, random_items(1), max_len=64))


def score(likelihoods, gold=0, characters=None, n_bytes=None, item=0) -> ItemScore:
    n = len(likelihoods)
    ones = (1,) * n
    return ItemScore(
        item,
        "question",
        gold,
        tuple(likelihoods),
        (False,) * n,
        characters or ones,
        n_bytes or ones,
    )


def test_metrics_by_hand():
    found = [
        # By log-likelihood choice 0, by character choice 1.
        score([-4.0, -6.0], gold=1, characters=(2, 12), n_bytes=(3, 6)),
        score([-4.0, -6.0], gold=0, characters=(8, 12), n_bytes=(2, 6)),  # both tie by character
        score([-3.0, -2.0, -1.0], gold=2, n_bytes=(1, 1, 4)),
    ]
    acc, norm, bits = summarize(TASKS["piqa"], found)
    chance = pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    deviation = math.sqrt(2 / 3 * 1 / 3 / 2)  # √(p (1 - p) / (n - 1))
    assert acc == {
        "task": "piqa",
        "metric": "acc",
        "value": pytest.approx(2 / 3),
        "stderr": pytest.approx(deviation),
        "n": 3,
        "chance": chance,
    }
    assert norm["metric"] == "acc_norm"
    assert (norm["value"], norm["stderr"], norm["chance"]) == (1.0, 0.0, chance)
    nats = [6 / 6, 4 / 2, 1 / 4]
    mean = sum(nats) / 3
    assert bits["metric"] == "bits_per_byte"
    assert bits["value"] == pytest.approx(mean / math.log(2))
    spread = math.sqrt(sum((x - mean) ** 2 for x in nats) / 2)
    assert bits["stderr"] == pytest.approx(spread / math.sqrt(3) / math.log(2))
    assert bits["chance"] is None


def test_winogrande_has_no_acc_norm_and_one_item_no_stderr():
    rows = summarize(TASKS["winogrande"], [score([-1.0, -2.0])])
    assert [row["metric"] for row in rows] == ["acc", "bits_per_byte"]
    assert [row["stderr"] for row in rows] == [None, None]


def test_of_equal_choices_the_first_is_taken_and_an_empty_one_never_by_character():
    assert score([-2.0, -1.0, -1.0]).choice == 1
    assert score([-2.0, -1.0], characters=(2, 1)).choice_norm == 0
    assert score([-0.1, -9.0], characters=(0, 1)).choice_norm == 1
