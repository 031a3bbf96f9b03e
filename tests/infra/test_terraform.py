"""infra/terraform: a closed bucket, roles that may do no more than they need, and no secrets."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hcl2
import pytest

from emuedit.operations.storage import bucket_setup
from tests.repository import ROOT

FOLDER = ROOT / "infra/terraform"


def plain(value: Any) -> Any:
    """Parsed HCL without the quotes around strings."""
    if isinstance(value, dict):
        return {plain(key): plain(part) for key, part in value.items() if key != "__is_block__"}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return value[1:-1] if isinstance(value, str) and value[:1] == value[-1:] == '"' else value


def blocks(kind: str) -> list[dict[str, Any]]:
    contents = [plain(hcl2.loads(path.read_text())) for path in sorted(FOLDER.glob("*.tf"))]
    return [block for content in contents for block in content.get(kind, [])]


def named(kind: str, resource_type: str, name: str) -> dict[str, Any]:
    return next(block[resource_type][name] for block in blocks(kind) if name in block.get(resource_type, {}))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("terraform") is None, reason="wants terraform")
def test_the_files_are_formatted() -> None:
    process = subprocess.run(["terraform", "fmt", "-check", "-diff", FOLDER], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.slow
def test_the_bucket_is_closed_versioned_and_encrypted() -> None:
    access = named("resource", "aws_s3_bucket_public_access_block", "data")
    assert all(
        access[key] is True
        for key in ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    )
    versioning = named("resource", "aws_s3_bucket_versioning", "data")
    assert versioning["versioning_configuration"] == [{"status": "Enabled"}]
    assert named("resource", "aws_s3_bucket_server_side_encryption_configuration", "data")["rule"]


@pytest.mark.slow
def test_lifecycle_rules_are_those_of_remote_init() -> None:
    rules = named("resource", "aws_s3_bucket_lifecycle_configuration", "data")["rule"]
    variables = {name: body for block in blocks("variable") for name, body in block.items()}
    days = {rule["id"].rpartition("}-")[2]: rule for rule in rules}
    unfinished = days["end-unfinished-uploads"]["abort_incomplete_multipart_upload"][0]
    assert unfinished["days_after_initiation"] == bucket_setup.ABORT_UPLOADS_DAYS
    assert variables["scratch_days"]["default"] == bucket_setup.SCRATCH_DAYS
    assert variables["old_version_days"]["default"] == bucket_setup.OLD_VERSIONS_DAYS


@pytest.mark.slow
def test_roles_may_only_do_what_they_need() -> None:
    allowed = {
        name: {
            action for statement in named("data", "aws_iam_policy_document", name)["statement"] for action in statement["actions"]
        }
        for name in ("trainer", "server")
    }
    assert allowed["server"] == {"s3:GetObject", "s3:ListBucket", "s3:GetBucketLocation"}
    assert allowed["server"] < allowed["trainer"]
    assert {"s3:GetBucketVersioning", "s3:GetLifecycleConfiguration"} < allowed["trainer"], "`remote gc` and `check` read them"
    forbidden = re.compile(r"\*|Policy|DeleteBucket|DeleteObjectVersion|PutBucket|Acl|iam:")
    assert not [action for actions in allowed.values() for action in actions if forbidden.search(action)]
    for name in allowed:
        for statement in named("data", "aws_iam_policy_document", name)["statement"]:
            if any("Object" in action for action in statement["actions"]):
                assert all(resource.endswith("/${var.prefix}/*") for resource in statement["resources"])


ACTIONS = {
    "list_objects_v2": "s3:ListBucket",
    "list_object_versions": "s3:ListBucketVersions",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "get_bucket_location": "s3:GetBucketLocation",
    "get_bucket_versioning": "s3:GetBucketVersioning",
    "get_bucket_lifecycle_configuration": "s3:GetLifecycleConfiguration",
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "put_object": "s3:PutObject",
    "upload_fileobj": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
}
"""Operation of the client -> the permission that it needs (Service Authorization Reference of AWS). DeleteObjects and GetObject
with a version need another one, without which `remove_folder` and `publish` do."""
OF_THE_OWNER = {"create_bucket", "put_bucket_versioning", "put_bucket_lifecycle_configuration"}
"""Operations of `remote init` that set up the bucket. Terraform does that here, and `init` skips what it may not do."""
WITHOUT_REQUEST = {"generate_presigned_url"}


@pytest.mark.slow
def test_the_trainer_may_do_what_the_code_asks_of_the_store() -> None:
    pattern = re.compile(r"""(?:\bcall\(|\.get_paginator\()\s*"([a-z0-9_]+)"|\bclient\.(?!get_paginator)([a-z0-9_]+)\(""")
    files = [path for path in (ROOT / "emuedit/operations").rglob("*.py") if "Bucket" in path.read_text()]
    names = {first or second for path in files for first, second in pattern.findall(path.read_text())}
    assert names == ACTIONS.keys() | OF_THE_OWNER | WITHOUT_REQUEST
    statements = named("data", "aws_iam_policy_document", "trainer")["statement"]
    allowed = {action: statement for statement in statements for action in statement["actions"]}
    assert set(ACTIONS.values()) <= allowed.keys()
    for action in ("s3:ListBucket", "s3:ListBucketVersions"):
        (condition,) = allowed[action]["condition"]
        assert (condition["variable"], condition["values"]) == ("s3:prefix", ["${var.prefix}", "${var.prefix}/*"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trainer", "server"])
def test_service_accounts_take_the_roles_only_by_their_names(name: str) -> None:
    trust = named("data", "aws_iam_policy_document", f"{name}_trust")
    account, service_account = (block["statement"]["content"][0] for block in trust["dynamic"])
    assert (account["actions"], service_account["actions"]) == (["sts:AssumeRole"], ["sts:AssumeRoleWithWebIdentity"])
    assert service_account["principals"] == [{"type": "Federated", "identifiers": ["${var.oidc_provider_arn}"]}]
    conditions = {entry["variable"]: (entry["test"], entry["values"]) for entry in service_account["condition"]}
    assert conditions == {
        "${local.issuer}:sub": ("StringEquals", f"${{var.{name}_subjects}}"),
        "${local.issuer}:aud": ("StringEquals", ["sts.amazonaws.com"]),
    }
    assert named("resource", "aws_iam_role", name)["name"] == f"${{local.role_prefix}}-{name}"


PROVIDER = "arn:aws:iam::111122223333:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/ABC"
SUBJECT = '["system:serviceaccount:emuedit:emuedit"]'


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainer_principals": '["arn:aws:iam::111122223333:role/ci"]'}, ""),
        ({"oidc_provider_arn": PROVIDER, "trainer_subjects": SUBJECT}, ""),
        ({"trainer_subjects": SUBJECT}, "Want at least one ARN, or an OIDC provider"),
        ({"trainer_principals": '["*"]'}, "Want ARNs, and not everybody"),
        ({"oidc_provider_arn": PROVIDER, "trainer_subjects": '["system:serviceaccount:emuedit:*"]'}, "without wildcards"),
        ({"oidc_provider_arn": "https://oidc.eks", "trainer_subjects": SUBJECT}, "Want arn:aws:iam::<account>:oidc-provider/"),
    ],
)
def test_names_of_roles_and_issuers(tmp_path: Path, values: dict[str, str], message: str) -> None:
    """The variables and the locals alone, which need no provider."""
    shutil.copy(FOLDER / "variables.tf", tmp_path)
    (local_values,) = re.findall(r"^locals \{.*?^\}", (FOLDER / "roles.tf").read_text(), re.MULTILINE | re.DOTALL)
    outputs = "".join(f'output "{name}" {{ value = local.{name} }}\n' for name in ("issuer", "role_prefix"))
    (tmp_path / "locals.tf").write_text(f"{local_values}\n{outputs}")
    long = "b" * 63
    settings = {"bucket": long, "region": "eu-central-1", "server_principals": '["arn:aws:iam::1:role/web"]', **values}
    words = [word for name, value in settings.items() for word in ("-var", f"{name}={value}")]
    subprocess.run(["terraform", "init", "-backend=false"], cwd=tmp_path, check=True, capture_output=True)
    plan = ["terraform", "apply", "-auto-approve", "-no-color", *words]
    process = subprocess.run(plan, cwd=tmp_path, capture_output=True, text=True)
    if message:
        assert process.returncode == 1
        assert message in " ".join(process.stderr.replace("│", "").split())
        return
    assert process.returncode == 0, process.stderr
    state = json.loads(subprocess.run(["terraform", "output", "-json"], cwd=tmp_path, capture_output=True, text=True).stdout)
    prefix = state["role_prefix"]["value"]
    assert len(f"{prefix}-trainer") <= 64
    assert prefix[:47] == long[:47]
    assert state["issuer"]["value"] == ("oidc.eks.eu-central-1.amazonaws.com/id/ABC" if "oidc_provider_arn" in values else "")


def test_artifacts_of_mlflow_lie_where_the_roles_and_the_lifecycle_rules_are() -> None:
    (prefix,) = (block["prefix"]["default"] for block in blocks("variable") if "prefix" in block)
    files = ("infra/compose.yaml", "docs/deployment.md", "emuedit/operations/servers/artifact_destination.py")
    for file in files:
        urls = re.findall(r"s3://[^/\s`]+/\S*mlflow\b", (ROOT / file).read_text())
        assert urls, file
        assert all(url.split("/", 3)[3].startswith(f"{prefix}/") for url in urls), file
    assert f'/{prefix}"' in (ROOT / "infra/compose/create_bucket.py").read_text(), "want its rules for the same prefix"


@pytest.mark.slow
def test_variables_are_described_and_no_value_is_a_secret() -> None:
    assert all(body["description"] and body["type"] for block in blocks("variable") for body in block.values())
    text = "".join(path.read_text() for path in FOLDER.glob("*.tf"))
    assert not re.search(r"(password|secret_key|access_key|token)\s*=", text, re.IGNORECASE)
    used = set(re.findall(r"var\.(\w+)", text))
    assert used == {name for block in blocks("variable") for name in block}
