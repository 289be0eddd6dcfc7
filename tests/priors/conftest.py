import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@dataclasses.dataclass(frozen=True)
class Toy:
    """A random distribution over 3 tokens of 3 codes, and the perfect network for it."""

    joint: np.ndarray  # float64 [27], in the order of `states`
    states: np.ndarray  # int [27, 3]
    num_tokens: int = 3
    num_codes: int = 3
    special_id: int = 3

    def logits(self, tokens: jax.Array) -> jax.Array:
        """log p(token i | all tokens of the row that are not `special_id`): [B, 3] -> [B, 3, 3]."""
        agrees = (tokens[:, None] == self.states) | (tokens[:, None] == self.special_id)
        weights = agrees.all(-1) * self.joint
        one_hot = np.eye(self.num_codes)[self.states]
        return jnp.log(jnp.einsum("bs,sik->bik", weights, one_hot, precision="highest"))

    def distance(self, samples: jax.Array) -> float:
        """Total variation between the joint and what was drawn, int32 [many, 3]."""
        index = np.asarray(samples) @ [9, 3, 1]
        return np.abs(np.bincount(index, minlength=27) / len(index) - self.joint).sum() / 2


@pytest.fixture(scope="session")
def toy():
    states = np.stack(np.unravel_index(np.arange(27), (3, 3, 3)), -1)
    return Toy(np.random.default_rng(0).dirichlet(np.full(27, 0.5)), states)
