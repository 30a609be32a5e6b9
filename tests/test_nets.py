"""Networks that take any leading dims."""

import pytest
import torch

from pvae.nets import MLP, ConvDecoder, ConvEncoder, GatedMLP, init_output_bias

NETS = {
    "MLP": (lambda: MLP((2, 3), (5,), (4, 2)), (2, 3), (4, 2)),
    "MLP, affine": (lambda: MLP(3, (), 2), (3,), (2,)),
    "GatedMLP": (lambda: GatedMLP((2, 3), (5, 6), 4), (2, 3), (4,)),
    "ConvEncoder": (lambda: ConvEncoder((1, 9, 6), (4, 3), 5), (1, 9, 6), (5,)),
    "ConvDecoder": (lambda: ConvDecoder(3, (4, 2), (1, 9, 6)), (3,), (1, 9, 6)),
    "ConvDecoder, two parameters": (lambda: ConvDecoder(3, (4,), (2, 1, 28, 20)), (3,), (2, 1, 28, 20)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("lead", [(), (4,), (2, 4), (3, 2, 4)])
def test_leading_dims_are_kept_and_rows_do_not_mix(name, lead):
    make, in_shape, out_shape = NETS[name]
    torch.manual_seed(0)
    net, x = make(), torch.randn(*lead, *in_shape)
    y = net(x)
    assert y.shape == (*lead, *out_shape)
    rows = [net(row) for row in x.reshape(-1, *in_shape)]
    torch.testing.assert_close(y.reshape(-1, *out_shape), torch.stack(rows))


@pytest.mark.parametrize("name", NETS)
def test_a_wrong_input_shape_is_named(name):
    make, in_shape, _ = NETS[name]
    with pytest.raises(ValueError, match=r"expected data of shape \(\.\.\., .*got"):
        make()(torch.zeros(4, *in_shape[:-1], in_shape[-1] + 1))


def test_gates_are_the_formula():
    torch.manual_seed(0)
    net = GatedMLP(3, (2,), 2)
    x = torch.randn(5, 3)
    a, b = net.layers[0](x).chunk(2, -1)
    torch.testing.assert_close(net(x), net.layers[-1](a * b.sigmoid()))


@pytest.mark.parametrize("net", [MLP(2, (4,), (1, 3, 3)), ConvDecoder(2, (4,), (1, 3, 3))], ids=["MLP", "ConvDecoder"])
def test_output_bias_starts_at_the_data_mean(net):
    mean = torch.full((1, 3, 3), 0.2)
    init_output_bias(net, mean)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.zero_()
    torch.testing.assert_close(net(torch.randn(2)).sigmoid(), mean)


def test_output_bias_keeps_away_from_certainty():
    net = MLP(2, (), 3)
    init_output_bias(net, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(net.layers[-1].bias.sigmoid(), torch.tensor([0.001, 0.5, 0.999]))


def test_output_bias_of_another_width_is_refused():
    with pytest.raises(ValueError, match="6 outputs, the data mean 3 values"):
        init_output_bias(MLP(2, (), 6), torch.zeros(3))


def test_images_are_asked_for():
    with pytest.raises(ValueError, match=r"takes images \(C, H, W\), got in_shape \(9,\); use an MLP"):
        ConvEncoder((9,), (3,), 2)
