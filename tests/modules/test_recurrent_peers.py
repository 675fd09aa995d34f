"""Stacked recurrent layers against PyTorch's with the same weights."""

from functools import partial

import jax
import numpy as np
import pytest

from biojax.modules import GRU, LSTM, RNN, BiRNN, StackedRNN

torch = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # those of other libraries
]

C, F, LENGTHS = 3, 5, (7, 2, 4)
CASES = {
    "tanh": (torch.nn.RNN, partial(RNN, F)),
    "relu": (partial(torch.nn.RNN, nonlinearity="relu"), partial(RNN, F, "relu")),
    "lstm": (torch.nn.LSTM, partial(LSTM, F)),
    "gru": (torch.nn.GRU, partial(GRU, F, "after")),
}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def randomised(net):
    """Every parameter random, so that none can be taken for another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) / 2)
    return net


def parameters(net, layer: int, direction: str) -> dict[str, np.ndarray]:
    """One direction of one layer. Biases of x and h add up, but for that of h in a GRU's n."""
    suffix = f"l{layer}{direction}"
    w_x, w_h, b_x, b_h = (
        getattr(net, f"{name}_{suffix}").detach().numpy()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    weights = {"w_x": w_x.T, "w_h": w_h.T}
    if not isinstance(net, torch.nn.GRU):
        return {**weights, "bias": b_x + b_h}
    gates = np.concatenate([b_h[: 2 * F], np.zeros(F, b_h.dtype)])
    return {**weights, "bias": b_x + gates, "bias_n": b_h[2 * F :]}


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "packed"])
@pytest.mark.parametrize("cell", CASES)
def test_pytorch_s_weights_give_the_same(cell, lengths):
    theirs, ours = CASES[cell]
    net = randomised(theirs(C, F, num_layers=2, batch_first=True, bidirectional=True))
    model = StackedRNN([BiRNN(ours(), ours(reverse=True)) for _ in range(2)])
    directions = {"forward": "", "backward": "_reverse"}
    params = {
        f"layers_{layer}": {ours: parameters(net, layer, s) for ours, s in directions.items()}
        for layer in range(2)
    }
    x = random(3, max(LENGTHS), C)
    state0 = random(2 if cell == "lstm" else 1, 4, 3, F)  # layer by layer, forward and backward
    states = [((*state0[:, i],), (*state0[:, i + 1],)) for i in (0, 2)]
    lengths = None if lengths is None else np.asarray(lengths)
    run = jax.jit(partial(model.apply, lengths=lengths, method="run"))
    h, after = run({"params": params}, x, *states)
    expected, last = torch_run(net, x, state0, lengths)
    np.testing.assert_allclose(h, expected, rtol=1e-5, atol=1e-5)
    for i, state in enumerate((*after[0], *after[1])):
        np.testing.assert_allclose(state, last[:, i], rtol=1e-5, atol=1e-5)


def torch_run(net, x, state0, lengths):
    """Outputs (b, t, 2 f), and the last states like those at first, of which an LSTM has two."""
    x, state0 = torch.from_numpy(x), torch.from_numpy(state0)
    with torch.no_grad():
        if lengths is not None:
            x = torch.nn.utils.rnn.pack_padded_sequence(
                x, torch.tensor(lengths), batch_first=True, enforce_sorted=False
            )
        y, last = net(x, state0[0] if len(state0) == 1 else tuple(state0))
        if lengths is not None:
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
    return y.numpy(), torch.stack([last] if len(state0) == 1 else [*last]).numpy()
