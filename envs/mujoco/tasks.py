"""The eleven MuJoCo tasks of Gymnasium v5, written on tensors.

Fields have the names and defaults of Gymnasium's constructors, where ``model`` is called ``xml_file``; what
``info`` tells goes by Gymnasium's names too.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..streams import Draws
from .engine import Sim
from .numerics import centre_of_mass, cos, row_norm, row_sum, sin, squared
from .task import Model, MujocoTask

Range = tuple[float, float]
Judged = tuple[Tensor, dict[str, Tensor]]

# -- what several tasks do alike -------------------------------------------------------------------------------------


def _uniform_start(sim: Sim, random: Draws, scale: float) -> dict[str, Tensor]:
    """:return: the default state with uniform noise on positions and velocities."""
    qpos = sim.init_qpos + random.uniform(-scale, scale, sim.model.nq)
    return {"qpos": qpos, "qvel": sim.init_qvel + random.uniform(-scale, scale, sim.model.nv)}


def _normal_start(sim: Sim, random: Draws, scale: float) -> dict[str, Tensor]:
    """:return: the default state with uniform noise on positions, normal noise on velocities."""
    qpos = sim.init_qpos + random.uniform(-scale, scale, sim.model.nq)
    return {"qpos": qpos, "qvel": sim.init_qvel + random.normal(sim.model.nv) * scale}


def _place(sim: Sim) -> dict[str, Tensor]:
    """:return: where a robot that moves in a plane stands, in metres."""
    return {
        "x_position": sim.qpos[:, 0].clone(),
        "y_position": sim.qpos[:, 1].clone(),
        "distance_from_origin": row_norm(sim.qpos[:, :2]),
    }


def _joined(*fields: Tensor) -> Tensor:
    """:return: fields (N, …) side by side, (N, D)."""
    return torch.cat([field.flatten(1) for field in fields], 1)


def _within(x: Tensor, bounds: Range) -> Tensor:
    return (bounds[0] < x) & (x < bounds[1])


def _worth(healthy: Tensor, reward: float, like: Tensor) -> Tensor:
    """:return: ``reward`` where healthy, else 0, in the precision of ``like``."""
    return healthy.to(like.dtype) * reward


# -- runners ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HalfCheetah(MujocoTask):
    """Run forward on two legs in a plane."""

    model: Model = "half_cheetah.xml"
    frame_skip: int = 5
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.1
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True
    max_episode_steps: ClassVar[int | None] = 1000
    reward_threshold: ClassVar[float | None] = 4800.0
    camera: ClassVar[dict[str, Any] | None] = {"distance": 4.0}

    def before(self, sim: Sim) -> Tensor:
        """:return: x, (N,)."""
        return sim.qpos[:, 0].clone()

    def observation(self, sim: Sim) -> Tensor:
        """:return: positions without x, velocities."""
        return _joined(sim.qpos[:, int(self.exclude_current_positions_from_observation) :], sim.qvel)

    def reward(self, sim: Sim, action: Tensor, before: Tensor) -> Judged:
        """:return: speed, less the cost of control."""
        velocity = (sim.qpos[:, 0] - before) / sim.dt
        forward = self.forward_reward_weight * velocity
        cost = self.ctrl_cost_weight * row_sum(action.square())
        parts = {"x_velocity": velocity, "reward_forward": forward, "reward_ctrl": -cost}
        return forward - cost, self.reset_info(sim) | parts

    def reset(self, sim: Sim, random: Draws) -> dict[str, Tensor]:
        """:return: uniform noise on positions, normal noise on velocities."""
        return _normal_start(sim, random, self.reset_noise_scale)

    def reset_info(self, sim: Sim) -> dict[str, Tensor]:
        """:return: x."""
        return {"x_position": sim.qpos[:, 0].clone()}


@dataclass(frozen=True, kw_only=True)
class _PlanarWalker(MujocoTask):
    """Walk or hop forward in a plane, upright."""

    frame_skip: int = 4
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-3
    healthy_reward: float = 1.0
    terminate_when_unhealthy: bool = True
    reset_noise_scale: float = 5e-3
    exclude_current_positions_from_observation: bool = True
    max_episode_steps: ClassVar[int | None] = 1000

    @abstractmethod
    def healthy(self, sim: Sim) -> Tensor:
        """:return: which rows are upright, (N,) bool."""

    def before(self, sim: Sim) -> Tensor:
        """:return: x, (N,)."""
        return sim.qpos[:, 0].clone()

    def observation(self, sim: Sim) -> Tensor:
        """:return: positions without x, velocities clipped."""
        qpos = sim.qpos[:, int(self.exclude_current_positions_from_observation) :]
        return _joined(qpos, sim.qvel.clamp(-10, 10))

    def reward(self, sim: Sim, action: Tensor, before: Tensor) -> Judged:
        """:return: speed and a bonus for being upright, less the cost of control."""
        velocity = (sim.qpos[:, 0] - before) / sim.dt
        forward = self.forward_reward_weight * velocity
        survive = _worth(self.healthy(sim), self.healthy_reward, velocity)
        cost = self.ctrl_cost_weight * row_sum(action.square())
        parts = {
            "x_velocity": velocity,
            "reward_forward": forward,
            "reward_ctrl": -cost,
            "reward_survive": survive,
        }
        return forward + survive - cost, self.reset_info(sim) | parts

    def terminated(self, sim: Sim) -> Tensor | None:
        """:return: which rows fell."""
        return ~self.healthy(sim) if self.terminate_when_unhealthy else None

    def reset(self, sim: Sim, random: Draws) -> dict[str, Tensor]:
        """:return: uniform noise."""
        return _uniform_start(sim, random, self.reset_noise_scale)

    def reset_info(self, sim: Sim) -> dict[str, Tensor]:
        """:return: x, and height over the start."""
        return {"x_position": sim.qpos[:, 0].clone(), "z_distance_from_origin": sim.qpos[:, 1] - sim.init_qpos[1]}


@dataclass(frozen=True, kw_only=True)
class Hopper(_PlanarWalker):
    """Hop forward on one leg in a plane."""

    model: Model = "hopper.xml"
    healthy_state_range: Range = (-100.0, 100.0)
    healthy_z_range: Range = (0.7, float("inf"))
    healthy_angle_range: Range = (-0.2, 0.2)
    reward_threshold: ClassVar[float | None] = 3800.0
    camera: ClassVar[dict[str, Any] | None] = {
        "trackbodyid": 2,
        "distance": 3.0,
        "lookat": np.array((0.0, 0.0, 1.15)),
        "elevation": -20.0,
    }

    def healthy(self, sim: Sim) -> Tensor:
        """:return: which rows are high, upright and calm enough."""
        calm = _within(_joined(sim.qpos[:, 2:], sim.qvel), self.healthy_state_range).all(1)
        high = _within(sim.qpos[:, 1], self.healthy_z_range)
        return calm & high & _within(sim.qpos[:, 2], self.healthy_angle_range)


@dataclass(frozen=True, kw_only=True)
class Walker2d(_PlanarWalker):
    """Walk forward on two legs in a plane."""

    model: Model = "walker2d_v5.xml"
    healthy_z_range: Range = (0.8, 2.0)
    healthy_angle_range: Range = (-1.0, 1.0)
    camera: ClassVar[dict[str, Any] | None] = {
        "trackbodyid": 2,
        "distance": 4.0,
        "lookat": np.array((0.0, 0.0, 1.15)),
        "elevation": -20.0,
    }

    def healthy(self, sim: Sim) -> Tensor:
        """:return: which rows are high and upright enough."""
        return _within(sim.qpos[:, 1], self.healthy_z_range) & _within(sim.qpos[:, 2], self.healthy_angle_range)


@dataclass(frozen=True, kw_only=True)
class Swimmer(MujocoTask):
    """Swim forward with three links in a plane of water."""

    model: Model = "swimmer.xml"
    frame_skip: int = 4
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-4
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True
    max_episode_steps: ClassVar[int | None] = 1000
    reward_threshold: ClassVar[float | None] = 360.0

    def before(self, sim: Sim) -> Tensor:
        """:return: x and y, (N, 2)."""
        return sim.qpos[:, :2].clone()

    def observation(self, sim: Sim) -> Tensor:
        """:return: positions without x and y, velocities."""
        return _joined(sim.qpos[:, 2 * self.exclude_current_positions_from_observation :], sim.qvel)

    def reward(self, sim: Sim, action: Tensor, before: Tensor) -> Judged:
        """:return: speed along x, less the cost of control."""
        x_velocity, y_velocity = ((sim.qpos[:, :2] - before) / sim.dt).unbind(1)
        forward = self.forward_reward_weight * x_velocity
        cost = self.ctrl_cost_weight * row_sum(action.square())
        parts = {
            "x_velocity": x_velocity,
            "y_velocity": y_velocity,
            "reward_forward": forward,
            "reward_ctrl": -cost,
        }
        return forward - cost, _place(sim) | parts

    def reset(self, sim: Sim, random: Draws) -> dict[str, Tensor]:
        """:return: uniform noise."""
        return _uniform_start(sim, random, self.reset_noise_scale)

    def reset_info(self, sim: Sim) -> dict[str, Tensor]:
        """:return: x, y, and the distance from the origin."""
        return _place(sim)


@dataclass(frozen=True, kw_only=True)
class Ant(MujocoTask):
    """Run along x on four legs."""

    model: Model = "ant.xml"
    frame_skip: int = 5
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.5
    contact_cost_weight: float = 5e-4
    healthy_reward: float = 1.0
    main_body: int | str = 1
    terminate_when_unhealthy: bool = True
    healthy_z_range: Range = (0.2, 1.0)
    contact_force_range: Range = (-1.0, 1.0)
    reset_noise_scale: float = 0.1
    exclude_current_positions_from_observation: bool = True
    include_cfrc_ext_in_observation: bool = True
    max_episode_steps: ClassVar[int | None] = 1000
    reward_threshold: ClassVar[float | None] = 6000.0
    camera: ClassVar[dict[str, Any] | None] = {"distance": 4.0}

    def healthy(self, sim: Sim) -> Tensor:
        """:return: which rows are at a fit height, (N,) bool."""
        low, high = self.healthy_z_range
        z = sim.qpos[:, 2]
        return _joined(sim.qpos, sim.qvel).isfinite().all(1) & (low <= z) & (z <= high)

    def contact_forces(self, sim: Sim) -> Tensor:
        """:return: on every body, clipped, (N, nbody, 6)."""
        return sim.cfrc_ext.clamp(*self.contact_force_range)

    def before(self, sim: Sim) -> Tensor:
        """:return: x and y of the main body, (N, 2)."""
        return sim.xpos[:, sim.body(self.main_body), :2].clone()

    def observation(self, sim: Sim) -> Tensor:
        """:return: positions without x and y, velocities, contact forces."""
        fields = [sim.qpos[:, 2 * self.exclude_current_positions_from_observation :], sim.qvel]
        if self.include_cfrc_ext_in_observation:
            fields.append(self.contact_forces(sim)[:, 1:])
        return _joined(*fields)

    def reward(self, sim: Sim, action: Tensor, before: Tensor) -> Judged:
        """:return: speed along x and a bonus for being healthy, less the costs of control and contacts."""
        x_velocity, y_velocity = ((sim.xpos[:, sim.body(self.main_body), :2] - before) / sim.dt).unbind(1)
        forward = x_velocity * self.forward_reward_weight
        survive = _worth(self.healthy(sim), self.healthy_reward, forward)
        control = self.ctrl_cost_weight * row_sum(action.square())
        contact = self.contact_cost_weight * row_sum(self.contact_forces(sim).square())
        parts = {
            "x_velocity": x_velocity,
            "y_velocity": y_velocity,
            "reward_forward": forward,
            "reward_ctrl": -control,
            "reward_contact": -contact,
            "reward_survive": survive,
        }
        return forward + survive - (control + contact), _place(sim) | parts

    def terminated(self, sim: Sim) -> Tensor | None:
        """:return: which rows are no longer healthy."""
        return ~self.healthy(sim) if self.terminate_when_unhealthy else None

    def reset(self, sim: Sim, random: Draws) -> dict[str, Tensor]:
        """:return: uniform noise on positions, normal noise on velocities."""
        return _normal_start(sim, random, self.reset_noise_scale)

    def reset_info(self, sim: Sim) -> dict[str, Tensor]:
        """:return: x, y, and the distance from the origin."""
        return _place(sim)


# -- humanoids -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _AnyHumanoid(MujocoTask):
    """What the two humanoids see, and how they start."""

    frame_skip: int = 5
    ctrl_cost_weight: float = 0.1
    reset_noise_scale: float = 1e-2
    exclude_current_positions_from_observation: bool = True
    include_cinert_in_observation: bool = True
    include_cvel_in_observation: bool = True
    include_qfrc_actuator_in_observation: bool = True
    include_cfrc_ext_in_observation: bool = True
    max_episode_steps: ClassVar[int | None] = 1000

    def observation(self, sim: Sim) -> Tensor:
        """:return: positions without x and y, velocities, inertias, velocities of bodies, joint and contact forces."""
        fields = [sim.qpos[:, 2 * self.exclude_current_positions_from_observation :], sim.qvel]
        if self.include_cinert_in_observation:
            fields.append(sim.cinert[:, 1:])
        if self.include_cvel_in_observation:
            fields.append(sim.cvel[:, 1:])
        if self.include_qfrc_actuator_in_observation:
            fields.append(sim.qfrc_actuator[:, 6:])
        if self.include_cfrc_ext_in_observation:
            fields.append(sim.cfrc_ext[:, 1:])
        return _joined(*fields)

    def costs(self, sim: Sim, contact_weight: float, contact_range: Range) -> tuple[Tensor, Tensor]:
        """:return: of controls as MuJoCo got them, and of contacts, (N,) each."""
        control = self.ctrl_cost_weight * row_sum(sim.ctrl.square())
        return control, (contact_weight * row_sum(sim.cfrc_ext.square())).clamp(*contact_range)

    def reset(self, sim: Sim, random: Draws) -> dict[str, Tensor]:
        """:return: uniform noise."""
        return _uniform_start(sim, random, self.reset_noise_scale)

    def reset_info(self, sim: Sim) -> dict[str, Tensor]:
        """:return: x, y, and how tendons stretch."""
        return {
            "x_position": sim.qpos[:, 0].clone(),
            "y_position": sim.qpos[:, 1].clone(),
            "tendon_length": sim.ten_length.clone(),
            "tendon_velocity": sim.ten_velocity.clone(),
        }


@dataclass(frozen=True, kw_only=True)
class Humanoid(_AnyHumanoid):
    """Walk along x on two legs."""

    model: Model = "humanoid.xml"
    forward_reward_weight: float = 1.25
    contact_cost_weight: float = 5e-7
    contact_cost_range: Range = (-float("inf"), 10.0)
    healthy_reward: float = 5.0
    terminate_when_unhealthy: bool = True
    healthy_z_range: Range = (1.0, 2.0)
    camera: ClassVar[dict[str, Any] | None] = {
        "trackbodyid": 1,
        "distance": 4.0,
        "lookat": np.array((0.0, 0.0, 2.0)),
        "elevation": -20.0,
    }

    def healthy(self, sim: Sim) -> Tensor:
        """:return: which rows are at a fit height, (N,) bool."""
        return _within(sim.qpos[:, 2], self.healthy_z_range)

    def before(self, sim: Sim) -> Tensor:
        """:return: x and y of the centre of mass, (N, 2)."""
        return centre_of_mass(sim.body_mass, sim.xipos)[:, :2]

    def reward(self, sim: Sim, action: Tensor, before: Tensor) -> Judged:
        """:return: speed along x and a bonus for being upright, less the costs of control and contacts."""
        x_velocity, y_velocity = ((self.before(sim) - before) / sim.dt).unbind(1)
        forward = self.forward_reward_weight * x_velocity
        survive = _worth(self.healthy(sim), self.healthy_reward, forward)
        control, contact = self.costs(sim, self.contact_cost_weight, self.contact_cost_range)
        parts = {
            "x_velocity": x_velocity,
            "y_velocity": y_velocity,
            "reward_survive": survive,
            "reward_forward": forward,
            "reward_ctrl": -control,
            "reward_contact": -contact,
        }
        return forward + survive - (control + contact), self.reset_info(sim) | parts

    def terminated(self, sim: Sim) -> Tensor | None:
        """:return: which rows fell."""
        return ~self.healthy(sim) if self.terminate_when_unhealthy else None

    def reset_info(self, sim: Sim) -> dict[str, Tensor]:
        """:return: x, y, how tendons stretch, and the distance from the origin."""
        return super().reset_info(sim) | _place(sim)


@dataclass(frozen=True, kw_only=True)
class HumanoidStandup(_AnyHumanoid):
    """Stand up from lying on the back, and stay up."""

    model: Model = "humanoidstandup.xml"
    uph_cost_weight: float = 1.0
    impact_cost_weight: float = 0.5e-6
    impact_cost_range: Range = (-float("inf"), 10.0)
    camera: ClassVar[dict[str, Any] | None] = {
        "trackbodyid": 1,
        "distance": 4.0,
        "lookat": np.array((0.0, 0.0, 0.8925)),
        "elevation": -20.0,
    }

    def reward(self, sim: Sim, action: Tensor, before: None) -> Judged:
        """:return: height over the time of a substep, less the costs of control and impacts.

        As in Gymnasium, ``uph_cost_weight`` weighs nothing.
        """
        height = sim.qpos[:, 2] / sim.model.opt.timestep
        control, impact = self.costs(sim, self.impact_cost_weight, self.impact_cost_range)
        parts = {"reward_linup": height, "reward_quadctrl": -control, "reward_impact": -impact}
        return height - control - impact + 1, self.reset_info(sim) | parts

    def reset_info(self, sim: Sim) -> dict[str, Tensor]:
        """:return: x, y, how tendons stretch, and height over the start."""
        return super().reset_info(sim) | {"z_distance_from_origin": sim.qpos[:, 2] - sim.init_qpos[2]}


# -- arms ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Reacher(MujocoTask):
    """Bring the tip of a two-jointed arm to a point."""

    model: Model = "reacher.xml"
    frame_skip: int = 2
    reward_dist_weight: float = 1.0
    reward_control_weight: float = 1.0
    max_episode_steps: ClassVar[int | None] = 50
    reward_threshold: ClassVar[float | None] = -3.75
    camera: ClassVar[dict[str, Any] | None] = {"trackbodyid": 0}

    def gap(self, sim: Sim) -> Tensor:
        """:return: from the target to the tip, (N, 3)."""
        return sim.xpos[:, sim.body("fingertip")] - sim.xpos[:, sim.body("target")]

    def observation(self, sim: Sim) -> Tensor:
        """:return: the joints' cosines and sines, the target, the joints' speeds, the gap in the plane."""
        angles = sim.qpos[:, :2]
        return _joined(cos(angles), sin(angles), sim.qpos[:, 2:], sim.qvel[:, :2], self.gap(sim)[:, :2])

    def reward(self, sim: Sim, action: Tensor, before: None) -> Judged:
        """:return: minus the distance, less the cost of control."""
        distance = -row_norm(self.gap(sim)) * self.reward_dist_weight
        control = -row_sum(action.square()) * self.reward_control_weight
        return distance + control, {"reward_dist": distance, "reward_ctrl": control}

    def reset(self, sim: Sim, random: Draws) -> dict[str, Tensor]:
        """:return: uniform noise on the joints, the target anywhere within reach."""
        joints = sim.init_qpos + random.uniform(-0.1, 0.1, sim.model.nq)
        target = random.uniform(-0.2, 0.2, 2, accept=lambda place: row_norm(place) < 0.2)
        speeds = sim.init_qvel + random.uniform(-0.005, 0.005, sim.model.nv)
        still = torch.zeros_like(target)
        return {"qpos": _joined(joints[:, :-2], target), "qvel": _joined(speeds[:, :-2], still)}


@dataclass(frozen=True, kw_only=True)
class Pusher(MujocoTask):
    """Push a cylinder to a point with a seven-jointed arm."""

    model: Model = "pusher_v5.xml"
    frame_skip: int = 5
    reward_near_weight: float = 0.5
    reward_dist_weight: float = 1.0
    reward_control_weight: float = 0.1
    max_episode_steps: ClassVar[int | None] = 100
    reward_threshold: ClassVar[float | None] = 0.0
    camera: ClassVar[dict[str, Any] | None] = {"trackbodyid": -1, "distance": 4.0}

    def observation(self, sim: Sim) -> Tensor:
        """:return: the joints' angles and speeds, where the arm's tip, the cylinder and the goal are."""
        places = [sim.xpos[:, sim.body(name)] for name in ("tips_arm", "object", "goal")]
        return _joined(sim.qpos[:, :7], sim.qvel[:, :7], *places)

    def reward(self, sim: Sim, action: Tensor, before: None) -> Judged:
        """:return: minus the distances from cylinder to goal and to arm, less the cost of control."""
        cylinder = sim.xpos[:, sim.body("object")]
        near = -row_norm(cylinder - sim.xpos[:, sim.body("tips_arm")]) * self.reward_near_weight
        distance = -row_norm(cylinder - sim.xpos[:, sim.body("goal")]) * self.reward_dist_weight
        control = -row_sum(action.square()) * self.reward_control_weight
        return distance + control + near, {"reward_dist": distance, "reward_ctrl": control, "reward_near": near}

    def reset(self, sim: Sim, random: Draws) -> dict[str, Tensor]:
        """:return: the arm at rest with noise on its speeds, the cylinder anywhere but too close to the goal."""
        cylinder = random.uniform((-0.3, -0.2), (0.0, 0.2), 2, accept=lambda place: row_norm(place) > 0.17)
        speeds = sim.init_qvel + random.uniform(-0.005, 0.005, sim.model.nv)
        still = torch.zeros_like(cylinder)
        arm = sim.init_qpos[:-4].expand(sim.num_envs, -1)
        return {"qpos": _joined(arm, cylinder, still), "qvel": _joined(speeds[:, :-4], still, still)}


# -- pendulums -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InvertedPendulum(MujocoTask):
    """Balance a pole on a cart."""

    model: Model = "inverted_pendulum.xml"
    frame_skip: int = 2
    reset_noise_scale: float = 0.01
    max_episode_steps: ClassVar[int | None] = 1000
    reward_threshold: ClassVar[float | None] = 950.0
    camera: ClassVar[dict[str, Any] | None] = {"trackbodyid": 0, "distance": 2.04}

    def observation(self, sim: Sim) -> Tensor:
        """:return: positions, velocities."""
        return _joined(sim.qpos, sim.qvel)

    def reward(self, sim: Sim, action: Tensor, before: None) -> Judged:
        """:return: 1 while the pole stands."""
        survive = _worth(~self.terminated(sim), 1.0, sim.qpos)
        return survive, {"reward_survive": survive}

    def terminated(self, sim: Sim) -> Tensor:
        """:return: where the pole leans by more than 0.2 rad."""
        return ~self.observation(sim).isfinite().all(1) | (sim.qpos[:, 1].abs() > 0.2)

    def reset(self, sim: Sim, random: Draws) -> dict[str, Tensor]:
        """:return: uniform noise."""
        return _uniform_start(sim, random, self.reset_noise_scale)


@dataclass(frozen=True, kw_only=True)
class InvertedDoublePendulum(MujocoTask):
    """Balance a pole on a pole on a cart."""

    model: Model = "inverted_double_pendulum.xml"
    frame_skip: int = 5
    healthy_reward: float = 10.0
    reset_noise_scale: float = 0.1
    max_episode_steps: ClassVar[int | None] = 1000
    reward_threshold: ClassVar[float | None] = 9100.0

    def observation(self, sim: Sim) -> Tensor:
        """:return: the cart's place, the angles' sines and cosines, velocities, the force that holds the cart."""
        angles, force = sim.qpos[:, 1:], sim.qfrc_constraint[:, :1]
        return _joined(sim.qpos[:, :1], sin(angles), cos(angles), sim.qvel.clamp(-10, 10), force.clamp(-10, 10))

    def reward(self, sim: Sim, action: Tensor, before: None) -> Judged:
        """:return: a bonus while the poles stand, less penalties of the tip's distance from the top and of speeds."""
        x, _, height = sim.site_xpos[:, 0].unbind(1)
        distance = 0.01 * squared(x) + squared(height - 2)
        velocity = 1e-3 * squared(sim.qvel[:, 1]) + 5e-3 * squared(sim.qvel[:, 2])
        survive = _worth(~self.terminated(sim), self.healthy_reward, height)
        parts = {"reward_survive": survive, "distance_penalty": -distance, "velocity_penalty": -velocity}
        return survive - distance - velocity, parts

    def terminated(self, sim: Sim) -> Tensor:
        """:return: where the tip is below 1 m."""
        return sim.site_xpos[:, 0, 2] <= 1

    def reset(self, sim: Sim, random: Draws) -> dict[str, Tensor]:
        """:return: uniform noise on positions, normal noise on velocities."""
        return _normal_start(sim, random, self.reset_noise_scale)


TASKS: dict[str, type[MujocoTask]] = {
    cls.__name__: cls
    for cls in (
        *(Ant, HalfCheetah, Hopper, Humanoid, HumanoidStandup, InvertedDoublePendulum, InvertedPendulum),
        *(Pusher, Reacher, Swimmer, Walker2d),
    )
}
"""By the names of Gymnasium's ids, without the version."""
