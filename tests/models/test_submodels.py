import numpy as np
import pytest

from minimoe_dist.config.schema import SparsifyConfig
from minimoe_dist.models.submodel_picture import draw_sub_models
from minimoe_dist.models.submodels import (
    LayerShape,
    PlainSizes,
    Sizes,
    build_sparsity_map,
    once_for_all_map,
    sub_model_shape,
    whole_shape,
)
from tests.golden import load_golden

SPARSITIES = SparsifyConfig().sparsities
TINY = Sizes(layers=3, heads=12, head_size=4, neurons=192)
BASE = Sizes(layers=12, heads=12, head_size=64, neurons=3072)


def random_map(sizes: Sizes, sparsities=SPARSITIES):
    draw = np.random.default_rng(0).random
    heads, neurons = draw((sizes.layers, sizes.heads)), draw((sizes.layers, sizes.neurons))
    return build_sparsity_map(heads, neurons, sizes, sparsities)


def lost(entry, kind):
    return sum(entry[kind].values())


def test_the_sparsity_map_is_the_published_one():
    _, tensors = load_golden("sparsebert")
    config, _ = load_golden("sparsebert")
    ours = build_sparsity_map(
        tensors["out.head_importance"], tensors["out.neuron_importance"], TINY, SPARSITIES
    )
    assert ours == published_map()
    assert config["num_attention_heads"] == TINY.heads


def published_map():
    import json

    from safetensors import safe_open

    from tests.golden import FOLDER

    with safe_open(FOLDER / "sparsebert.safetensors", "pt") as file:
        return json.loads(file.metadata()["meta"])["sparsity_map"]


def test_the_once_for_all_map_is_the_published_one():
    config, _ = load_golden("ofabert")
    assert once_for_all_map(TINY, [3, 2, 1], [48, 32, 24]) == config["sparsity_map"]


def test_a_map_takes_the_share_of_the_rule_everywhere():
    entry = random_map(BASE)["90"]  # 100 - round(100 sqrt(0.1)) = 68 per cent
    assert lost(entry, "head") == round(0.68 * 144)
    assert lost(entry, "neuron") == round(0.68 * 12 * 3072)
    assert set(entry["hidden"].values()) == {round(0.68 * 768)}


def test_the_least_important_elements_go_first():
    heads = np.arange(36.0).reshape(3, 12)
    neurons = -np.arange(576.0).reshape(3, 192)
    entry = build_sparsity_map(heads, neurons, TINY, [50])["50"]
    assert entry["head"] == {"0": 10}
    assert entry["neuron"] == {"2": 167}


def test_above_ninety_per_cent_neurons_pay_for_the_heads_that_stay():
    entry = random_map(BASE, [99.5])["99.5"]  # q = 93
    assert lost(entry, "head") == round(0.9 * 144)
    assert lost(entry, "neuron") == round(0.93 * 36864 + 0.03 * 144 * 64 * 2)


def test_removed_numbers_are_rounded_to_multiples_of_eight():
    entry = {"head": {"0": 1, "1": 3}, "neuron": {"0": 13, "2": 191}, "hidden": {"-1": 12}}
    shape = sub_model_shape(TINY, {"7": entry}, "7")
    # One head is 4 features, half of eight, which rounds to even.
    assert shape.layers == (LayerShape(12, 176), LayerShape(8, 192), LayerShape(12, 0))
    assert shape.hidden == 48 - 16


def test_sparsity_zero_is_the_whole_model_in_any_map():
    assert sub_model_shape(TINY, {}, "0") == whole_shape(TINY)


def test_a_once_for_all_sub_model_skips_layers_wholly_unless_told_to_keep_their_norms():
    entries = once_for_all_map(TINY, [1], [32])
    skipped = sub_model_shape(TINY, entries, "1,32")
    kept = sub_model_shape(TINY, entries, "1,32", keep_missing_layers=True)
    assert [layer.missing for layer in skipped.layers] == [False, True, True]
    assert [layer.missing for layer in kept.layers] == [False] * 3


def test_plain_sub_models_have_the_sizes_of_a_bert():
    sizes = BASE._replace(layers=6)
    entries = once_for_all_map(sizes, [6, 4, 3], [768, 512, 384, 256, 192])
    shape = sub_model_shape(sizes, entries, "4,384")
    assert shape.plain(64) == PlainSizes(layers=4, hidden=384, heads=6, neurons=1536)
    assert sub_model_shape(sizes, entries, "4,384", keep_missing_layers=True).plain(64) is None


def test_compute_of_a_plain_sub_model_is_counted_as_a_berts():
    sizes = BASE._replace(layers=6)
    entries = once_for_all_map(sizes, [3], [384])
    gmac = sub_model_shape(sizes, entries, "3,384").gmac(64)
    assert gmac == pytest.approx(12 * 3 * 384**2 * 128 / 1e9)


@pytest.mark.parametrize("sparsity", ["5", "90%", "6,768"])
def test_a_sparsity_outside_the_map_is_refused_with_those_inside(sparsity):
    with pytest.raises(ValueError, match=rf"sparsity: {sparsity} .* it has: 0 10 20"):
        sub_model_shape(TINY, published_map(), sparsity)


def test_a_model_without_a_map_says_so():
    with pytest.raises(ValueError, match="not sparsified"):
        sub_model_shape(TINY, {}, "90")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"head": {"0": 13}}, "13 of 12"),
        ({"neuron": {"3": 1}}, "layer 3 of a model of 3"),
        ({"hidden": {"-1": 8, "0": 16}}, "share one"),
        ({"hidden": {"-1": 48}}, "none of 48 hidden"),
        ({"layers": {"0": 1}}, "has layers"),
    ],
)
def test_a_map_of_another_model_is_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        sub_model_shape(TINY, {"90": entry}, "90")


def test_heads_that_rounding_would_cut_in_two_are_refused():
    sizes = Sizes(layers=1, heads=4, head_size=12, neurons=192)
    with pytest.raises(ValueError, match="heads of size 12"):
        sub_model_shape(sizes, {"10": {"head": {"0": 1}}}, "10")


@pytest.mark.parametrize("sparsity", [-1, 100, 120])
def test_a_sparsity_that_is_no_share_is_refused(sparsity):
    with pytest.raises(ValueError, match=rf"sparsities: {sparsity} is not in \[0, 100\)"):
        random_map(TINY, [sparsity])


@pytest.mark.parametrize(
    ("layers", "hidden", "message"),
    [
        ([4], [48], "ofa_layer: 4 of a student of 3"),
        ([0], [48], "ofa_layer: 0"),
        ([3], [64], "ofa_hidden: 64 of a student of hidden size 48"),
        ([3], [30], "ofa_hidden: 30 of 48 is no whole number of heads"),
        ([3], [44], "remove a multiple of 8"),
        ([], [48], "give at least one number"),
    ],
)
def test_impossible_once_for_all_sizes_are_refused(layers, hidden, message):
    with pytest.raises(ValueError, match=message):
        once_for_all_map(TINY, layers, hidden)


def test_the_picture_shows_every_sub_model(tmp_path):
    draw_sub_models(BASE, random_map(BASE), tmp_path / "kept.png")
    assert (tmp_path / "kept.png").stat().st_size > 10_000
