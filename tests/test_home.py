import subprocess
import sys
from pathlib import Path

# huggingface_hub looks when it is imported, the others when they are asked
WHERE = """
import os
from pathlib import Path
import matplotlib, torch
from huggingface_hub import constants
from frugal_shared.weights import cache_folder
folders = (constants.HF_HOME, constants.HF_HUB_CACHE, constants.HF_TOKEN_PATH)
print(*map(str, (Path.home(), *folders, torch.hub.get_dir(), matplotlib.get_cachedir(), cache_folder())), sep="\\n")
"""


def test_libraries_find_pytests_home_and_not_the_users(pytestconfig):
    told = subprocess.run([sys.executable, "-c", WHERE], capture_output=True, text=True, check=True).stdout.splitlines()
    home = pytestconfig.rootpath / ".pytest_cache/d/home"
    assert len(told) == 7
    assert all(Path(folder).is_relative_to(home) for folder in told), told
