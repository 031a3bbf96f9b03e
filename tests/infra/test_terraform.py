"""infra/terraform: a closed bucket, roles that may do no more than they need, and no secrets."""

import re
import shutil
import subprocess
from typing import Any

import hcl2
import pytest

from emuedit.operations import bucket_setup
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


def test_the_files_are_formatted() -> None:
    if shutil.which("terraform"):
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


def test_lifecycle_rules_are_those_of_remote_init() -> None:
    rules = named("resource", "aws_s3_bucket_lifecycle_configuration", "data")["rule"]
    variables = {name: body for block in blocks("variable") for name, body in block.items()}
    days = {rule["id"].rpartition("}-")[2]: rule for rule in rules}
    unfinished = days["end-unfinished-uploads"]["abort_incomplete_multipart_upload"][0]
    assert unfinished["days_after_initiation"] == bucket_setup.ABORT_UPLOADS_DAYS
    assert variables["scratch_days"]["default"] == bucket_setup.SCRATCH_DAYS
    assert variables["old_version_days"]["default"] == bucket_setup.OLD_VERSIONS_DAYS


def test_roles_may_only_do_what_they_need() -> None:
    allowed = {
        name: {
            action for statement in named("data", "aws_iam_policy_document", name)["statement"] for action in statement["actions"]
        }
        for name in ("trainer", "server")
    }
    assert allowed["server"] == {"s3:GetObject", "s3:ListBucket", "s3:GetBucketLocation"}
    assert allowed["server"] < allowed["trainer"]
    forbidden = re.compile(r"\*|Policy|DeleteBucket|DeleteObjectVersion|PutBucket|Acl|iam:")
    assert not [action for actions in allowed.values() for action in actions if forbidden.search(action)]
    for name in allowed:
        for statement in named("data", "aws_iam_policy_document", name)["statement"]:
            if any("Object" in action for action in statement["actions"]):
                assert all(resource.endswith("/${var.prefix}/*") for resource in statement["resources"])


def test_artifacts_of_mlflow_lie_where_the_roles_and_the_lifecycle_rules_are() -> None:
    (prefix,) = (block["prefix"]["default"] for block in blocks("variable") if "prefix" in block)
    files = ("infra/compose.yaml", "docs/operations.md", "emuedit/operations/server_stack.py")
    for file in files:
        urls = re.findall(r"s3://[^/\s`]+/\S*mlflow\b", (ROOT / file).read_text())
        assert urls, file
        assert all(url.split("/", 3)[3].startswith(f"{prefix}/") for url in urls), file
    assert f'/{prefix}"' in (ROOT / "infra/compose/create_bucket.py").read_text(), "want its rules for the same prefix"


def test_variables_are_described_and_no_value_is_a_secret() -> None:
    assert all(body["description"] and body["type"] for block in blocks("variable") for body in block.values())
    text = "".join(path.read_text() for path in FOLDER.glob("*.tf"))
    assert not re.search(r"(password|secret_key|access_key|token)\s*=", text, re.IGNORECASE)
    used = set(re.findall(r"var\.(\w+)", text))
    assert used == {name for block in blocks("variable") for name in block}
