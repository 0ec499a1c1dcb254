#!/usr/bin/python3 -B
"""Ansible inventory of the lab's running hosts, as `lab/lab inventory` prints it."""

import subprocess
import sys
from pathlib import Path

lab = Path(__file__).resolve().parents[2] / "lab" / "lab"
sys.exit(subprocess.call([lab, "inventory", *sys.argv[1:]]))
