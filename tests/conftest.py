"""One torch thread for each worker: with more, workers that run side by side wait for each other."""

import multiprocessing
import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(1)

# Processes that tests start are forked from a server: it imports torch once, not each of them.
multiprocessing.set_forkserver_preload(["stable_baselines3.common.vec_env", "headway.scripts.train"])
