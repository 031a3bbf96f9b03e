"""infra/k8s: valid for Kubernetes, within the restricted profile, with limits and probes."""

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml

from emuedit.process_identity import WORKSPACE_ENV
from tests.repository import ROOT

FOLDER = ROOT / "infra/k8s"
VERSION = "1.33"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
NOT_RESOURCES = {"kustomization.yaml", "prefect.yaml"}  # the latter has deployments of Prefect
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name not in NOT_RESOURCES)
RESOURCES: list[dict[str, Any]] = [resource for path in FILES for resource in yaml.safe_load_all(path.read_text())]
PREFECT: dict[str, Any] = yaml.safe_load((FOLDER / "prefect.yaml").read_text())
JOB_VARIABLES: dict[str, Any] = PREFECT["deployments"][0]["work_pool"]["job_variables"]
POOL: dict[str, Any] = json.loads((FOLDER / "prefect-job-template.json").read_text())
WORKLOADS = [resource for resource in RESOURCES if "template" in resource.get("spec", {})]


def label(resource: dict[str, Any]) -> str:
    metadata = resource["metadata"]
    return f"{resource['kind']}-{metadata.get('name') or metadata['generateName']}"


@pytest.mark.slow
@pytest.mark.parametrize("resource", RESOURCES, ids=label)
def test_resources_are_valid(resource: dict[str, Any]) -> None:
    metadata = {"name": resource["metadata"].get("generateName", "")} | resource["metadata"]
    kubernetes_validate.validate({**resource, "metadata": metadata}, VERSION, strict=True)
    assert resource["kind"] == "Namespace" or metadata["namespace"] == KUSTOMIZATION["namespace"]
    assert resource["kind"] != "Secret", "secrets are not in git"


@pytest.mark.parametrize("workload", WORKLOADS, ids=label)
def test_pods_are_within_the_restricted_profile(workload: dict[str, Any]) -> None:
    pod = workload["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        assert not container["image"].endswith(":latest")
        assert ":" in container["image"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, "want a place to write to"


def test_serving_is_probed_and_scaled_and_the_job_has_a_gpu() -> None:
    by_kind = {resource["kind"]: resource for resource in RESOURCES}
    deployment, autoscaler = by_kind["Deployment"], by_kind["HorizontalPodAutoscaler"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert 1 < autoscaler["spec"]["minReplicas"] < autoscaler["spec"]["maxReplicas"]
    assert "replicas" not in deployment["spec"], "`kubectl apply` would undo what the autoscaler did"
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    assert by_kind["Service"]["spec"]["selector"].items() <= labels
    resources = by_kind["Job"]["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"]


def test_serving_computes_with_the_cpus_that_it_requests() -> None:
    """The autoscaler compares the use with the request: with a thread per core of the machine, one client fills all replicas."""
    (container,) = pod_of("Deployment")["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["OMP_NUM_THREADS"] == container["resources"]["requests"]["cpu"]


def test_requests_may_end_before_a_pod_does() -> None:
    from emuedit.tracking import serve_model

    (deployment,) = (resource for resource in RESOURCES if resource["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    wait_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= wait_s + serve_model.REQUEST_S + 10
    assert "command" not in container, "want that of the image, which answers what was asked before it ends"
    assert "args" not in container


def test_an_eviction_uses_up_no_try_and_a_retrain_that_failed_is_not_tried_again() -> None:
    """The exit status is 1 after retries of what may pass, or at once for what cannot, such as wrong params; 2 for its words."""
    (job,) = (resource for resource in RESOURCES if resource["kind"] == "Job")
    ignored, failed = job["spec"]["podFailurePolicy"]["rules"]
    assert (failed["action"], failed["onExitCodes"]) == ("FailJob", {"operator": "In", "values": [1, 2]})
    assert job["spec"]["backoffLimit"] > 0, "want another try for a pod that was killed"
    assert (ignored["action"], ignored["onPodConditions"]) == ("Ignore", [{"type": "DisruptionTarget", "status": "True"}])
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "Kubernetes wants it for this policy"


def test_the_job_names_the_workspace_by_its_volume() -> None:
    (job,) = (resource for resource in RESOURCES if resource["kind"] == "Job")
    pod = job["spec"]["template"]["spec"]
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert [entry["value"] for entry in pod["containers"][0]["env"] if entry["name"] == WORKSPACE_ENV] == claims


@pytest.fixture
def pool_job() -> dict[str, Any]:
    """The Job that Prefect's worker makes for the deployment on the Kubernetes pool, without Prefect's own env and args."""
    from prefect.utilities.templating import apply_values

    defaults = {name: field["default"] for name, field in POOL["variables"]["properties"].items() if "default" in field}
    environment = {name: value for name, value in (defaults["env"] | JOB_VARIABLES["env"]).items() if value is not None}
    variables = defaults | JOB_VARIABLES | {"env": environment}
    job: dict[str, Any] = apply_values(POOL["job_configuration"]["job_manifest"], variables)
    return job


def test_the_pool_job_is_that_of_the_training_job(pool_job: dict[str, Any]) -> None:
    (training,) = (resource for resource in RESOURCES if resource["kind"] == "Job")
    pod, training_pod = (job["spec"]["template"]["spec"] for job in (pool_job, training))
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)  # Prefect wants them there, Kubernetes drops them
    (container,), (training_container,) = pod["containers"], training_pod["containers"]
    assert container["name"] == "prefect-job", "Prefect wants this name"
    environment = [{"name": name, "value": value} for name, value in container["env"].items()]
    assert all(entry in environment for entry in training_container["env"])
    differences = {"name": "retrain", "command": training_container["command"], "env": training_container["env"]}
    assert pod | {"containers": [container | differences]} == training_pod
    job = pool_job | {"metadata": pool_job["metadata"] | {"name": "retrain", "labels": {}}}
    container["env"] = environment
    kubernetes_validate.validate(job, VERSION, strict=True)
    assert job["metadata"]["namespace"] == training["metadata"]["namespace"]


@pytest.mark.slow
def test_the_workers_password_and_key_are_not_in_the_jobs_that_it_creates() -> None:
    """Whoever may read Jobs would see them; pods have them from the Secret."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, temporary_settings
    from prefect.workers.base import BaseJobConfiguration

    secrets = {PREFECT_API_AUTH_STRING: "admin:5ecret-password", PREFECT_API_KEY: "pnu_5ecret-key"}
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", **secrets}):
        assert "5ecret" in str(BaseJobConfiguration._base_environment())
        job = asyncio.run(BaseJobConfiguration.from_template_and_values(POOL, JOB_VARIABLES))
        job.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="retrain"))
    assert job.env.items() >= JOB_VARIABLES["env"].items()
    assert job.env["PREFECT_API_URL"] == "http://127.0.0.1:9/api"
    assert "5ecret" not in str(job.env)


OPTIONS = {"name", "env", "labels", "annotations", "command", "namespace", "cluster_config", "job_manifest"}
"""Options of a job that prefect-kubernetes 0.8.0 reads. It also declares job_watch_timeout_seconds, pod_watch_timeout_seconds and
stream_output, without effect."""


def test_options_of_the_pool_have_an_effect() -> None:
    configuration = POOL["job_configuration"]
    assert configuration.keys() <= OPTIONS
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(configuration)))
    assert used == POOL["variables"]["properties"].keys()


def test_models_of_the_hub_are_downloaded_once_to_the_volume(pool_job: dict[str, Any]) -> None:
    (container,), (pool_container,) = (pod["containers"] for pod in (pod_of("Job"), pool_job["spec"]["template"]["spec"]))
    (mount,) = (mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "workspace")
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert Path(environment["HF_HOME"]).is_relative_to(mount)
    assert pool_container["env"]["HF_HOME"] == environment["HF_HOME"]
    path = Path(environment["HF_HOME"]).relative_to(mount) / "model"
    assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0, "want git and DVC to ignore it"


def test_the_deployment_on_the_pool_finds_its_code_and_names_variables_of_the_pool() -> None:
    (training,) = (resource for resource in RESOURCES if resource["kind"] == "Job")
    folder = training["spec"]["template"]["spec"]["containers"][0]["workingDir"]
    assert PREFECT["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": folder}}]
    assert JOB_VARIABLES.keys() <= POOL["variables"]["properties"].keys()
    settings = POOL["job_configuration"]
    assert all(settings[name] == f"{{{{ {name} }}}}" for name in ("name", "env", "labels", "command", "namespace"))
    assert "infra/k8s/prefect-job-template.json" in (FOLDER / "prefect.yaml").read_text()


def test_everything_is_denied_that_no_policy_names() -> None:
    policies = {resource["metadata"]["name"]: resource["spec"] for resource in RESOURCES if resource["kind"] == "NetworkPolicy"}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def egress() -> list[dict[str, Any]]:
    policies = {resource["metadata"]["name"]: resource["spec"] for resource in RESOURCES if resource["kind"] == "NetworkPolicy"}
    rules: list[dict[str, Any]] = policies["names-and-servers"]["egress"]
    return rules


def test_names_are_resolved_where_the_resolver_is_no_pod() -> None:
    """NodeLocal DNSCache and Cloud DNS of GKE; the latter has the address of the metadata server, which has credentials."""
    (names,) = (rule for rule in egress() if "to" in rule)
    blocks = {peer["ipBlock"]["cidr"] for peer in names["to"] if "ipBlock" in peer}
    assert blocks == {"169.254.20.10/32", "169.254.169.254/32"}
    assert {"namespaceSelector"} in [set(peer) for peer in names["to"]]
    assert names["ports"] == [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    assert not any(entry["port"] in (80, 988) for rule in egress() for entry in rule["ports"]), "ports of the metadata server"


def test_pods_may_send_mail() -> None:
    from flows.mail_notification import _PORTS

    ports = {entry["port"] for rule in egress() if "to" not in rule for entry in rule["ports"]}
    assert ports >= set(_PORTS.values())


def pod_of(kind: str) -> dict[str, Any]:
    (resource,) = (resource for resource in RESOURCES if resource["kind"] == kind)
    pod: dict[str, Any] = resource["spec"]["template"]["spec"]
    return pod


def test_serving_has_neither_the_role_nor_the_keys_of_retrains() -> None:
    accounts = {kind: pod_of(kind)["serviceAccountName"] for kind in ("Job", "Deployment")}
    assert accounts == {"Job": "emuedit", "Deployment": "serving"}
    assert JOB_VARIABLES["service_account_name"] == accounts["Job"]
    by_name = {resource["metadata"]["name"]: resource for resource in RESOURCES if resource["kind"] == "ServiceAccount"}
    assert set(by_name) == set(accounts.values())
    assert all(entry["automountServiceAccountToken"] is False for entry in by_name.values())
    assert "annotations" not in by_name[accounts["Deployment"]]["metadata"]
    page = (ROOT / "docs/deployment.md").read_text()
    assert set(re.findall(rf"system:serviceaccount:{KUSTOMIZATION['namespace']}:([a-z-]+)", page)) == {accounts["Job"]}
    annotated = re.findall(r"kubectl --namespace emuedit annotate serviceaccount ([a-z-]+) eks.amazonaws.com/role-arn=", page)
    assert annotated == [accounts["Job"]]


def test_the_worker_of_the_pool_may_make_jobs_and_watch_them_and_no_more() -> None:
    by_kind = {resource["kind"]: resource for resource in RESOURCES}
    role, binding = by_kind["Role"], by_kind["RoleBinding"]
    verbs = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    watch = {"get", "list", "watch"}
    assert verbs == {
        ("batch", "jobs"): watch | {"create", "patch", "delete"},
        **{("", name): watch for name in ("pods", "pods/log", "events")},
    }
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]}
    assert (binding["roleRef"], binding["metadata"]["namespace"]) == (reference, JOB_VARIABLES["namespace"])
    pods = {"emuedit", "serving"}
    assert not [entry for entry in binding["subjects"] if entry["name"] in pods], "pods have no rights in the cluster"
    assert f"OBSERVER_NAMESPACES={role['metadata']['namespace']}" in (FOLDER / "prefect.yaml").read_text()


def secrets(pod: dict[str, Any]) -> set[str]:
    (container,) = pod["containers"]
    return {source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source}


def test_each_secret_of_a_pod_is_created_in_the_docs() -> None:
    training, serving = secrets(pod_of("Job")), secrets(pod_of("Deployment"))
    assert not training & serving, "a secret of retrains may have keys that write to the bucket"
    page = (ROOT / "docs/deployment.md").read_text()
    assert set(re.findall(r"create secret generic ([a-z-]+)", page)) == training | serving


def test_mlflow_is_where_the_policies_let_pods_reach_it() -> None:
    (config,) = (resource for resource in RESOURCES if resource["kind"] == "ConfigMap")
    address = urlsplit(config["data"]["MLFLOW_TRACKING_URI"])
    _, namespace, suffix = str(address.hostname).split(".", 2)
    assert (namespace != KUSTOMIZATION["namespace"], suffix) == (True, "svc"), "nothing but serving is let in in this namespace"
    assert {"port": address.port} in [entry for rule in egress() if "to" not in rule for entry in rule["ports"]]


def test_the_kustomization_names_all_files_but_the_template() -> None:
    assert set(KUSTOMIZATION["resources"]) == {path.name for path in FILES} - {"training-job.yaml"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="wants kubectl")
def test_kubectl_builds_the_kustomization() -> None:
    built = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert len(list(yaml.safe_load_all(built.stdout))) == len(RESOURCES) - 1
