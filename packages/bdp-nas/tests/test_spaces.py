"""Spaces: texts, numbers of parameters, and supernets that compute what their genotypes stand for."""

import copy

import pytest
import torch
from torch import nn

from bdp_nas.genotype import NONE, format_cell
from bdp_nas.spaces import SPACES, get_space, nasbench201
from bdp_nas.spaces.cell import Graph, MixedCell, MixedEdges
from bdp_nas.spaces.darts import GRAPH, OPERATIONS, derive_cell
from bdp_nas.spaces.operations import BUILDERS, channel_shuffle, drop_path
from bdp_nas.spaces.space import Size, calibrate

TINY = {
    "nasbench201": Size(classes=3, channels=4, cells=2),
    "darts": Size(classes=3, channels=4, cells=3),
    "mobilenet": Size(classes=3, channels=8, cells=2),
    "macro": Size(classes=3, channels=4, cells=2),
}
PUBLISHED = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)


def images(count=4, side=8):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def tiny(name, partial=1, seed=0):
    """A small supernet in float64 whose α are far from equal."""
    torch.manual_seed(seed)
    supernet = get_space(name).supernet(TINY[name], partial).double()
    with torch.no_grad():
        for alpha in supernet.alphas():
            alpha.normal_()
    return supernet


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_name_is_a_space_and_another_name_is_told_what_there_is():
    assert all(get_space(name).name == name for name in SPACES)
    with pytest.raises(ValueError, match="space 'nb101' is unknown; allowed: nasbench201, darts, mobilenet, macro"):
        get_space("nb101")


# NAS-Bench-201


def test_all_15625_texts_and_indices_go_back_and_forth():
    texts = [nasbench201.index_to_genotype(index) for index in range(15625)]
    assert len(set(texts)) == 15625
    assert [nasbench201.genotype_to_index(text) for text in texts] == list(range(15625))


def test_indices_are_the_benchmark_s_own():
    known = {  # published with the benchmark's data
        0: "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
        1835: "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|",
        9930: "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|",
    }
    assert {index: nasbench201.index_to_genotype(index) for index in known} == known


@pytest.mark.parametrize("index", [0, 857, 1835, 9930, 15624])
@pytest.mark.parametrize("size", [Size(10, 16, 5), Size(3, 4, 1, in_channels=1)])
def test_the_parameter_formula_counts_what_is_built(index, size):
    genotype = nasbench201.index_to_genotype(index)
    with torch.device("meta"):
        network = get_space("nasbench201").network(genotype, size)
    assert parameters(network) == nasbench201.parameter_count(genotype, size)


def test_the_parameter_formula_gives_the_published_range():
    counts = [nasbench201.parameter_count(nasbench201.index_to_genotype(i), Size(10, 16, 5)) for i in range(15625)]
    assert (min(counts), max(counts)) == (73_306, 1_531_546)
    assert {b - 73_306 for b in counts} >= {0, 28_000, 243_040}


def test_nasbench201_may_choose_none():
    supernet = tiny("nasbench201")
    with torch.no_grad():
        supernet.alpha["cell"][:, 0] = 9.0
    assert get_space("nasbench201").operations(supernet.genotype()) == (NONE,) * 6
    assert supernet.derive()(images()).isfinite().all()


# the DARTS genotype


def mixture(**largest):
    """Weights (14, 8), all 0.01 but those given as e{edge}=(operation, weight), …"""
    weights = torch.full((14, 8), 0.01)
    for edge, entries in largest.items():
        for operation, weight in entries:
            weights[int(edge[1:]), OPERATIONS.index(operation)] = weight
    return weights


def test_the_darts_genotype_of_a_worked_example():
    weights = mixture(
        e0=[("none", 0.9), ("skip_connect", 0.05)],  # node 0 has edges 0 and 1: both stay, and none is never chosen
        e1=[("sep_conv_3x3", 0.2)],
        e2=[("none", 0.8), ("max_pool_3x3", 0.15)],  # node 1: edges 2 to 4; 3 and 4 are stronger without none
        e3=[("dil_conv_3x3", 0.3)],
        e4=[("sep_conv_5x5", 0.2), ("dil_conv_5x5", 0.4)],
        # node 2, edges 5 to 8: all equal, so the first two, each with the first operation after none
        e10=[("avg_pool_3x3", 0.5)],  # node 3, edges 9 to 13: two with equal weights, in order of their source
        e13=[("skip_connect", 0.5)],
    )
    assert format_cell(derive_cell(weights)) == (
        "|skip_connect~0|sep_conv_3x3~1|+|dil_conv_3x3~1|dil_conv_5x5~2|"
        "+|max_pool_3x3~0|max_pool_3x3~1|+|avg_pool_3x3~1|skip_connect~4|"
    )


def test_none_takes_part_in_the_softmax_that_ranks_edges():
    supernet = tiny("darts")
    with torch.no_grad():
        supernet.alpha["normal"].zero_()
        supernet.alpha["normal"][2:5, OPERATIONS.index("skip_connect")] = 5.0
        supernet.alpha["normal"][2, 0] = 9.0  # edge 2 has the same α for the skip, and is nearly all none
    assert supernet.genotype().startswith("normal=|max_pool_3x3~0|max_pool_3x3~1|+|skip_connect~1|skip_connect~2|")


def test_edge_normalisation_decides_which_edges_stay():
    supernet = tiny("darts", partial=4)
    with torch.no_grad():
        supernet.alpha["normal"].zero_()
        supernet.beta["normal"].zero_()
        supernet.beta["normal"][[3, 4]] = 2.0
    assert supernet.genotype().split("+")[1] == "|max_pool_3x3~1|max_pool_3x3~2|"


def test_the_text_that_the_authors_of_darts_print_is_read():
    space = get_space("darts")
    network = space.network(PUBLISHED, TINY["darts"])
    assert network.genotype.startswith("normal=|sep_conv_3x3~0|sep_conv_3x3~1|+|sep_conv_3x3~0|sep_conv_3x3~1|+|skip_")
    assert space.operations(network.genotype) == space.operations(PUBLISHED)
    assert space.network(network.genotype, TINY["darts"]).genotype == network.genotype


def test_the_published_darts_network_has_its_published_size():
    with torch.device("meta"):
        network = get_space("darts").network(PUBLISHED, Size(10, 36, 20))
    assert parameters(network) / 1e6 == pytest.approx(3.3, abs=0.06)  # DARTS (second order): 3.3 M


# supernet and network


@pytest.mark.parametrize("name", SPACES)
def test_a_fixed_supernet_has_the_genotype_it_was_fixed_to(name):
    for seed in range(5):
        genotype = tiny(name, seed=seed).genotype()
        supernet = tiny(name, seed=100)
        supernet.fix(genotype)
        assert supernet.genotype() == genotype
        assert all(set(weights.unique().tolist()) == {0.0, 1.0} for weights in supernet.mixture().values())


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("seed", range(3))
def test_a_network_computes_what_the_supernet_does_with_one_hot_weights(name, seed):
    supernet = tiny(name, seed=seed)
    genotype = supernet.genotype()
    if name == "darts":  # a batch norm follows the supernet's pools, and only there
        genotype = genotype.replace("avg_pool", "sep_conv").replace("max_pool", "dil_conv")
    supernet.fix(genotype)
    network = supernet.derive()
    assert network.genotype == genotype
    torch.testing.assert_close(network(images(side=16)), supernet(images(side=16)))
    torch.testing.assert_close(network.eval()(images(side=16)), supernet.eval()(images(side=16)))


@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_a_supernet_trains_every_weight_and_a_network_only_its_own(name):
    supernet = tiny(name)
    supernet(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in supernet.parameters())
    network = supernet.derive()
    before = copy.deepcopy(supernet.state_dict())
    nn.init.zeros_(network.body.classifier.weight)
    after = supernet.state_dict()
    assert all(value.equal(after[key]) for key, value in before.items())


@pytest.mark.parametrize("operations", [nasbench201.OPERATIONS, OPERATIONS], ids=["nasbench201", "darts"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norm_pools", [False, True])
def test_edges_computed_together_equal_one_module_for_each(operations, stride, norm_pools):
    if stride == 2 and operations == nasbench201.OPERATIONS:
        operations = [name for name in operations if name != "skip_connect"]
    edges = MixedEdges(operations, 4, stride, 3, 1, norm_pools).double()
    x, weights = images(4, 8).repeat(1, 2, 1, 1)[:, :4], torch.rand(3, len(operations), dtype=torch.double)
    mixed = edges(x, [row.unbind() for row in weights])
    for edge in range(3):
        total = torch.zeros_like(mixed[edge])
        for column, name in enumerate(operations):
            if name == NONE:
                continue
            one = BUILDERS[name](4, stride, affine=False).double()
            one.load_state_dict(edges.weights_of(name, edge))
            output = one(x)
            if norm_pools and "pool" in name:
                output = nn.BatchNorm2d(4, affine=False).double()(output)
            total += weights[edge, column] * output
        torch.testing.assert_close(mixed[edge], total)


def test_none_has_a_weight_and_no_module():
    edges = MixedEdges((NONE, "skip_connect"), 4, 1, 2, 1, False)
    assert list(edges.operations) == ["skip_connect"]
    x = torch.randn(1, 4, 2, 2)
    first, second = edges(x, torch.tensor([[0.75, 0.25], [1.0, 0.0]]).unbind())
    assert first.equal(0.25 * x) and not second.any()


@pytest.mark.parametrize("name", SPACES)
def test_searched_batch_norms_have_no_scale_and_derived_ones_do(name):
    supernet = tiny(name)
    searched = [m for key, m in supernet.named_modules() if ".operations." in key and isinstance(m, nn.BatchNorm2d)]
    assert searched and not any(norm.affine for norm in searched)
    assert all(norm.track_running_stats for norm in searched)
    assert all(m.affine for m in supernet.derive().modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(("name", "partial"), [*((name, 1) for name in SPACES), ("nasbench201", 4), ("darts", 4)])
def test_the_architecture_is_not_among_the_weights(name, partial):
    supernet = tiny(name, partial)
    alphas, weights = ({id(value) for value in values} for values in (supernet.alphas(), supernet.weights()))
    assert alphas and not alphas & weights
    assert alphas | weights == {id(value) for value in supernet.parameters()}
    assert len(supernet.named_weights()) == len(weights)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("side", [15, 16])
def test_odd_and_even_images_pass(name, side):
    supernet = tiny(name)
    assert supernet(images(2, side)).shape == (2, 3)
    assert supernet.derive()(images(2, side)).shape == (2, 3)


def test_grey_images_pass():
    size = Size(classes=5, channels=4, cells=1, in_channels=1)
    assert get_space("nasbench201").supernet(size)(torch.randn(2, 1, 8, 8)).shape == (2, 5)


def test_initial_architectures_are_almost_undecided():
    for weights in get_space("darts").supernet(TINY["darts"]).mixture().values():
        assert (weights - 1 / 8).abs().max() < 1e-3


# DARTS networks


def test_reduction_cells_stand_at_the_thirds():
    supernet = get_space("darts").supernet(Size(3, 4, 6))
    strides = [cell.graph.sources[0].stride for cell in supernet.body.cells]
    assert strides == [1, 1, 2, 1, 2, 1]
    assert [edges.stride for edges in supernet.body.cells[2].graph.sources] == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("side", [16, 32])
def test_the_auxiliary_head_speaks_in_training_only(side):
    network = get_space("darts").network(PUBLISHED, TINY["darts"], auxiliary=True).double()
    logits, second = network(images(2, side))
    assert logits.shape == second.shape == (2, 3)
    assert network.eval()(images(2, side)).shape == (2, 3)
    assert get_space("darts").network(PUBLISHED, TINY["darts"]).double()(images(2, side)).shape == (2, 3)


def test_a_dropped_path_is_a_whole_sample_and_the_mean_stays():
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(4000, 2, 3, 3), 0.25)
    assert all(len(sample.unique()) == 1 for sample in dropped[:50])
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)


def test_paths_drop_in_training_only_and_never_an_identity():
    network = get_space("darts").network(PUBLISHED, TINY["darts"]).double()
    network.drop_path = 0.5
    torch.manual_seed(0)
    assert not network(images()).equal(network(images()))
    assert network.eval()(images()).equal(network(images()))
    skips = nasbench201.index_to_genotype(1835)
    network = get_space("nasbench201").network(skips, TINY["nasbench201"]).double()
    expected = network(images())
    network.drop_path = 0.9
    assert network(images()).equal(expected)


# PC-DARTS


@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_partial_supernets_run_and_normalise_the_edges_of_every_node(name):
    supernet = tiny(name, partial=4)
    assert supernet(images(2, 16)).shape == (2, 3)
    for weights in supernet.edge_mixture().values():
        sums = [part.sum().item() for part in weights.split(supernet.nodes)]
        assert sums == pytest.approx([1.0] * len(supernet.nodes))


def test_channels_that_are_not_mixed_pass_by_and_are_shuffled_in():
    edges = MixedEdges(OPERATIONS, 8, 1, 1, 4, True)
    x = torch.randn(2, 8, 4, 4)
    (mixed,) = edges(x, torch.zeros(1, 8).unbind())
    assert mixed.equal(channel_shuffle(torch.cat([torch.zeros(2, 2, 4, 4), x[:, 2:]], 1), 4))
    assert channel_shuffle(torch.arange(8.0)[None, :, None, None], 4).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_edge_weights_multiply_what_passes_by_too():
    cell = MixedCell(Graph(1, 2), ("skip_connect",), 4, partial=4)
    x, ones = torch.randn(2, 4, 3, 3), [[torch.tensor(1.0)]] * 3
    shuffled = channel_shuffle(x, 4)  # one channel in each group: nothing moves
    first, second = cell([x], (ones, torch.tensor([1.0, 0.25, 0.75]).unbind()))
    torch.testing.assert_close(first, shuffled)
    torch.testing.assert_close(second, 0.25 * x + 0.75 * first)


def test_partial_needs_a_divisor_and_a_space_whose_blocks_keep_their_channels():
    with pytest.raises(ValueError, match="6 channels do not split into partial=4 parts"):
        get_space("nasbench201").supernet(Size(3, 6, 1), partial=4)
    with pytest.raises(ValueError, match="partial=4 is not defined in the space macro"):
        get_space("macro").supernet(TINY["macro"], partial=4)
    with pytest.raises(ValueError, match="operations with partial=4 have other weights"):
        tiny("nasbench201", partial=4).derive()


# MobileNet-like


def test_the_mobilenet_space_has_21_blocks_of_which_15_may_be_skipped():
    places = get_space("mobilenet").places(Size(1000, 32, 4))
    assert len(places) == 21
    skippable = [place for place in places if "skip" in place.operations]
    assert len(skippable) == 15 and all(p.stride == 1 and p.inputs == p.outputs for p in skippable)
    assert {len(place.operations) for place in places} == {6, 7}
    assert [place.outputs for place in places[::4]] == [24, 40, 80, 96, 192, 320]


def test_the_best_network_of_nasbench_macro_has_its_published_size():
    with torch.device("meta"):
        network = get_space("macro").network("22212220", Size(10, 32, 3))
    assert parameters(network) / 1e6 == pytest.approx(1.99, abs=0.005)


def test_a_mixture_of_mobilenet_blocks_keeps_its_input():
    supernet = tiny("mobilenet")
    block, place = supernet.body.blocks[1], supernet.places[1]
    x, weights = torch.randn(2, place.inputs, 4, 4).double(), torch.rand(7).double().softmax(0)
    branches = sum(w * op.body(x) for w, (name, op) in zip(weights, block.operations.items()) if name != "skip")
    torch.testing.assert_close(block(x, ([weights.unbind()], None)), x + branches)


def test_calibration_takes_the_mean_over_batches():
    network = nn.Sequential(nn.BatchNorm2d(1, momentum=0.1))
    images = torch.randn(128, 1, 2, 2) + 3
    calibrate(network, images)
    assert network[0].running_mean.item() == pytest.approx(images.mean().item(), rel=1e-5)
    assert network[0].momentum == 0.1


# bad input


@pytest.mark.parametrize(
    ("name", "genotype", "message"),
    [
        ("nasbench201", "hello", "cell 'hello' does not parse"),
        ("nasbench201", "", "cell '' does not parse"),
        ("nasbench201", "|none~0|+|none~0|none~1|", "has other edges"),
        ("nasbench201", "|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", "has other edges"),
        (
            "nasbench201",
            "|none~0|+|none~0|conv~1|+|none~0|none~1|none~2|",
            "operation 'conv' is unknown; allowed: none",
        ),
        ("darts", "normal=|skip_connect~0|", "does not parse; allowed: normal=CELL reduce=CELL"),
        ("darts", "normal=|skip_connect~0| reduce=|skip_connect~0|", "has other edges; allowed: 4 nodes"),
        ("darts", PUBLISHED.replace("dil_conv_3x3", "none"), "operation 'none' is unknown"),
        ("darts", PUBLISHED.replace("('sep_conv_3x3', 1)", "('sep_conv_3x3', 4)"), "a source that comes after it"),
        ("darts", "Genotype(", "has other edges"),
        ("mobilenet", "k3e3-k9e9", "operation 'k9e9' is unknown"),
        ("mobilenet", "k3e3", "has 1 blocks; allowed: 11"),
        ("mobilenet", "-".join(["skip"] * 11), "block 0 of genotype .* is 'skip'; allowed: k3e3"),
        ("macro", "0123", "does not parse; allowed: digits"),
        ("macro", "012", "has 3 blocks; allowed: 5"),
    ],
)
def test_a_genotype_that_does_not_fit_is_one_line(name, genotype, message):
    with pytest.raises(ValueError, match=message) as error:
        get_space(name).network(genotype, TINY[name])
    assert "\n" not in str(error.value)


def test_other_bad_values_are_one_line():
    with pytest.raises(ValueError, match="cells=0 is not possible; allowed: 1 or more"):
        Size(10, 16, 0)
    with pytest.raises(ValueError, match="index 15625 is not in the space; allowed: 0 to 15624"):
        nasbench201.index_to_genotype(15625)
    for name in ("nasbench201", "mobilenet", "macro"):
        genotype = tiny(name).genotype()
        with pytest.raises(ValueError, match=f"auxiliary=True is not defined in the space {name}"):
            get_space(name).network(genotype, TINY[name], auxiliary=True)


def test_graphs_number_edges_by_node():
    assert GRAPH.edges[:5] == ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1))
    assert nasbench201.GRAPH.edges == ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))
