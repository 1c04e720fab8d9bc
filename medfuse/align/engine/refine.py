"""Uphill from a start, by the slope of the measure (L-BFGS-B, Byrd et al. 1995, through scipy)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import scipy

from medfuse.align.engine.information import Floats, Information


class Model(ABC):
    """A kind of transform near a start: its parameters, each about as far as it moves the far parts, in mm.

    The last three are a shift; the others change the linear part about a centre.

    Args:
        start: (4, 4).
        center: LPS mm in the fixed world.
        radius_mm: How far from the centre the volume reaches.
    """

    size: int

    def __init__(self, start: Floats, center: Floats, radius_mm: float) -> None:
        self.start, self.radius_mm = start, radius_mm
        self.pivot = start[:3, :3] @ center + start[:3, 3]

    def matrix(self, parameters: Floats) -> Floats:
        """The transform (4, 4)."""
        matrix = np.eye(4)
        matrix[:3, :3] = self._linear(parameters[:-3])
        matrix[:3, 3] = self.pivot + parameters[-3:] - matrix[:3, :3] @ self.pivot
        return np.asarray(matrix @ self.start, dtype=np.float64)

    @abstractmethod
    def slope(self, parameters: Floats, by_matrix: Floats) -> Floats:
        """A slope by the matrix' (3, 4) entries as one by the parameters."""

    @abstractmethod
    def _linear(self, parameters: Floats) -> Floats:
        """The linear part (3, 3) after the start's."""


class Rigid(Model):
    """Rotation vector, and shift; the start is rigid."""

    size = 6

    def slope(self, parameters: Floats, by_matrix: Floats) -> Floats:
        """A slope by the matrix' (3, 4) entries as one by the parameters."""
        turned = self.matrix(parameters)
        turned[:3, 3] -= self.pivot + parameters[3:]
        # A small turn w more moves each point by w × (where it lies about the pivot).
        torque = by_matrix @ turned[:3].T
        by_turn = np.array([torque[2, 1] - torque[1, 2], torque[0, 2] - torque[2, 0], torque[1, 0] - torque[0, 1]])
        vector = parameters[:3] / self.radius_mm
        return np.concatenate([_left_jacobian(vector).T @ by_turn / self.radius_mm, by_matrix[:, 3]])

    def _linear(self, parameters: Floats) -> Floats:
        turn: Floats = scipy.spatial.transform.Rotation.from_rotvec(parameters / self.radius_mm).as_matrix()
        return turn


class Affine(Model):
    """Any change of the linear part, and shift."""

    size = 12

    def slope(self, _parameters: Floats, by_matrix: Floats) -> Floats:
        """A slope by the matrix' (3, 4) entries as one by the parameters."""
        about = self.start.copy()
        about[:3, 3] -= self.pivot
        return np.concatenate([(by_matrix @ about[:3].T).ravel() / self.radius_mm, by_matrix[:, 3]])

    def _linear(self, parameters: Floats) -> Floats:
        return np.eye(3) + parameters.reshape(3, 3) / self.radius_mm


def refined(measure: Information, model: Model, iterations: int = 60) -> Floats:
    """Where the measure is largest, uphill from the model's start: the transform (4, 4).

    What it is there has to be measured: where its last search along a line fails, L-BFGS-B (of scipy 1.17) tells the
    value of another point than the one it returns.
    """

    def downhill(parameters: Floats) -> tuple[float, Floats]:
        value, by_matrix = measure(model.matrix(parameters))
        return -value, -model.slope(parameters, by_matrix)

    options = {"maxiter": iterations, "ftol": 1e-7, "gtol": 1e-6}
    found = scipy.optimize.minimize(downhill, np.zeros(model.size), jac=True, method="L-BFGS-B", options=options)
    return model.matrix(found.x)


def _left_jacobian(vector: Floats) -> Floats:
    """How a change of a rotation vector turns further: the left Jacobian of SO(3), (3, 3)."""
    angle = float(np.linalg.norm(vector))
    cross = np.cross(np.eye(3), vector)
    if angle < 1e-6:
        return np.eye(3) + cross / 2
    return np.asarray(
        np.eye(3) + (1 - np.cos(angle)) / angle**2 * cross + (angle - np.sin(angle)) / angle**3 * cross @ cross
    )
