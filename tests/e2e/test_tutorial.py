"""The tutorial works as it stands: its files are cut out of the page and its commands run.

Only the model is exchanged, for a tiny one with random weights beside the default
model's tokenizer. It is trained hard enough to copy the form of a demonstration, so that
the page's tool is called by the policy itself; whether it answers well is not asked here.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from metier.records.ledger import Ledger
from metier.records.types import Run
from metier.recipes.runner import load_plugins
