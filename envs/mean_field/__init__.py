"""Mean field games: finite games in discrete time, what follows from a policy exactly, solvers, environments."""

from .cohorts import Trajectories, load_cohorts, observe, synthetic
from .dynamics import BestResponse, best_response, exploitability, flow, policy_value, policy_values
from .game import MFGame
from .graph import graph_game, make_reward
from .library import GAMES, make_game, register_game
from .member import MeanFieldAgentBatch, encode
from .n_agents import deviation_gain
from .population import MeanFieldPopulationBatch
from .regularisers import Entropy, Quadratic
from .solvers import SOLVERS, History, Solution, solve

__all__ = [
    "GAMES",
    "SOLVERS",
    "BestResponse",
    "Entropy",
    "History",
    "MFGame",
    "MeanFieldAgentBatch",
    "MeanFieldPopulationBatch",
    "Quadratic",
    "Solution",
    "Trajectories",
    "best_response",
    "deviation_gain",
    "encode",
    "exploitability",
    "flow",
    "graph_game",
    "load_cohorts",
    "make_game",
    "make_reward",
    "observe",
    "policy_value",
    "policy_values",
    "register_game",
    "solve",
    "synthetic",
]
