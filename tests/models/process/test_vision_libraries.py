"""timm and torchvision without torch's compiler: what they ask it for, and what is the same as without us."""

import subprocess
import sys

import pytest


def printed(code: str) -> str:
    """What a fresh process prints, in which nothing is imported yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_network_embeds_and_the_compiler_is_never_imported() -> None:
    code = """
import sys
from tlray.config import RecipeConfig
from tlray.models.backbones.images import resolve_backbone
from tlray.models.encoder.golden import make_recipe_file, make_encoder
backbone = resolve_backbone(RecipeConfig(backbone="timm:test_resnet", weights="random:0"), None)
make_encoder(make_recipe_file(backbone), None, where="here", backbone=backbone)
print("timm" in sys.modules, "torchvision" in sys.modules, "torch._dynamo" in sys.modules)
"""
    assert printed(code) == "True True False"


def test_what_is_asked_of_the_compiler_later_is_answered_by_it() -> None:
    code = """
import sys, torch
disable = torch.compiler.disable
import tlray.models.process.vision_libraries
print(torch.compiler.disable is disable, "torch._dynamo" in sys.modules)
import torchvision
answer = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
import torch._dynamo
print("torch._dynamo" in sys.modules, answer is torch._dynamo.utils.is_compile_supported("cpu"))
"""
    assert printed(code).splitlines() == ["True False", "True True"]


@pytest.mark.slow
def test_what_timm_keeps_out_of_compiled_code_stays_out_of_it() -> None:
    code = """
import torch
import tlray.models.process.vision_libraries
from timm.models.naflexvit import NaFlexEmbeds
kept = NaFlexEmbeds._apply_factorized_naflex_pos_embed
kept.__wrapped__.__code__ = (lambda *arguments: torch.compiler.is_compiling()).__code__
print(torch.compile(lambda: kept(None), backend="eager")(), torch.compile(torch.compiler.is_compiling, backend="eager")())
"""
    assert printed(code) == "False True"


def test_a_compiler_that_is_there_already_is_used() -> None:
    code = """
import sys, torch._dynamo
utils = sys.modules["torch._dynamo.utils"]
import tlray.models.process.vision_libraries
print(sys.modules["torchvision.ops.roi_align"].is_compile_supported is utils.is_compile_supported)
"""
    assert printed(code) == "True"


def test_another_thread_imports_the_compiler_itself_while_the_libraries_are_imported() -> None:
    code = """
import builtins, importlib.machinery, sys, threading, torch
plain_import, disable = builtins.__import__, torch.compiler.disable
found = {}

def import_it():
    import torch._dynamo
    found["utils"] = torch._dynamo.utils
    found["disabled"] = torch.compiler.disable(lambda: torch.compiler.is_compiling(), reason="a test")

class Meanwhile:  # when timm is executed, the libraries are being imported
    def find_spec(self, name, *_):
        if name != "timm":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name)
        execute = spec.loader.exec_module

        def after_the_other(module):
            thread = threading.Thread(target=import_it)
            thread.start()
            thread.join()
            execute(module)

        spec.loader.exec_module = after_the_other
        return spec

sys.meta_path.insert(0, Meanwhile())
import tlray.models.process.vision_libraries
import torchvision
utils = sys.modules["torch._dynamo.utils"]
print(found["utils"] is utils, utils.__file__ is not None, isinstance(utils.ReinplaceCounters, type), found["disabled"]())
print(builtins.__import__ is plain_import, torch.compiler.disable is disable)
print(sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") is utils.is_compile_supported("cpu"))
"""
    assert printed(code).splitlines() == ["True True True False", "True True", "True"]


def test_the_driver_names_its_actors_without_torch() -> None:
    code = "import sys, tlray.extraction.on_ray.run; print('torch' in sys.modules, 'ray' in sys.modules)"
    assert printed(code) == "False True"
