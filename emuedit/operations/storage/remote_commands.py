"""`emuedit remote`: manage data in S3-compatible storage."""

import argparse
import sys
from pathlib import Path
from uuid import uuid4

from emuedit.operations.storage import bucket_setup, data_manifest, data_objects, dvc_remote
from emuedit.operations.storage.bucket import SCRATCH, Bucket, RemoteLocation
from emuedit.operations.storage.remote_error import RemoteError
from emuedit.progress import waiting

_N_SHOWN = 20


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `remote` and its commands to those of `emuedit`."""
    remote = commands.add_parser("remote", help="data in S3-compatible storage")
    parts = remote.add_subparsers(required=True, metavar="command")
    keys = "Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile; they are never written."

    init = parts.add_parser("init", help="set up a bucket, and DVC for it", epilog=keys)
    init.set_defaults(run=_init)
    init.add_argument("url", help="s3://bucket/prefix; the bucket is created if it does not exist")
    init.add_argument("--endpoint", metavar="URL", help="such as https://store.example.org; default: AWS, or AWS_ENDPOINT_URL")
    init.add_argument("--region", help="region of the bucket; default: the profile's")
    init.add_argument("--profile", help="profile of ~/.aws/config that has the credentials")
    init.add_argument("--name", default="s3", help="name of the DVC remote, which becomes DVC's default remote; default: s3")
    init.add_argument("--local", action="store_true", help="write to .dvc/config.local, which git ignores")

    check = parts.add_parser("check", help="test the object store, and suggest fixes", epilog=keys)
    check.set_defaults(run=_check)
    check.add_argument("--json", action="store_true", help="print JSON")

    gc = parts.add_parser("gc", help="list the data that no commit needs; with --yes, delete it")
    gc.set_defaults(run=_gc)
    gc.add_argument("--yes", action="store_true", help="delete it in the remote")

    verify = parts.add_parser("verify", help="ask the store for each object of this commit's data")
    verify.set_defaults(run=_verify)
    verify.add_argument("--repair", action="store_true", help="upload those again that the store lacks or cannot read")

    publish = parts.add_parser("publish", help="publish the data of this commit as the latest")
    publish.set_defaults(run=_publish)
    latest = parts.add_parser("latest", help="print the latest published manifest")
    latest.set_defaults(run=_latest)
    latest.add_argument("--json", action="store_true", help="print JSON")

    link = parts.add_parser("link", help="upload a report and print a URL that opens without an account")
    link.set_defaults(run=_link)
    link.add_argument("path", type=Path, help="such as reports/evaluation/contact_sheet.png")
    link.add_argument("--hours", type=float, default=24, help="how long the URL works, at most 168; default: 24")


def _init(options: argparse.Namespace) -> None:
    root = dvc_remote.find_root()
    location = RemoteLocation.parse(options.url, options.endpoint, options.region, options.profile)
    dvc_remote.refuse_others(root, options.name, location, options.local)
    bucket = Bucket(location)
    created = bucket_setup.create_bucket(bucket)
    print(f"bucket {location.bucket}: {'created' if created else 'already exists, reused'}")
    try:
        changed = bucket_setup.turn_on_versioning(bucket)
        print(f"versioning: {'turned on' if changed else 'already on'}; deleted data can be restored for a while")
    except RemoteError as error:
        print(f"versioning: NOT turned on. {error}", file=sys.stderr)
    try:
        n_others, ends_uploads = bucket_setup.merge_lifecycle(bucket)
        days = f"scratch {bucket_setup.SCRATCH_DAYS}, deleted or replaced data {bucket_setup.OLD_VERSIONS_DAYS}"
        days = f"unfinished uploads {bucket_setup.ABORT_UPLOADS_DAYS}, {days}" if ends_uploads else days
        print(f"lifecycle rules, days until removal: {days}; {n_others} other rules are unchanged")
        if not ends_uploads:
            print(
                f"unfinished uploads: the store refuses a rule that ends them; {bucket_setup.UPLOADS_BY_STORE}", file=sys.stderr
            )
    except RemoteError as error:
        print(f"lifecycle rules: NOT set. {error}", file=sys.stderr)
    before = dvc_remote.write_location(root, options.name, location, options.local)
    file = dvc_remote.LOCAL_CONFIG if options.local else dvc_remote.CONFIG
    print(f"DVC remote {options.name!r}, the default: {location}, in {file}" + (f"; it was {before}" if before else ""))
    commit = "" if options.local else f" `git commit {file}`,"
    print(f"next: `emuedit remote check`,{commit} `uv run dvc push`")


def _check(options: argparse.Namespace) -> int:
    from emuedit.operations.storage import access_probes, bucket_probes, object_probes, remote_check

    _, location = dvc_remote.read_location(dvc_remote.find_root())
    essential = [*access_probes.ACCESS_PROBES, ("write", object_probes.probe_write)]
    others = [*access_probes.SETTING_PROBES, *object_probes.OBJECT_PROBES, *bucket_probes.BUCKET_PROBES]
    with waiting(f"checking {location}"):
        outcomes = remote_check.run_probes(Bucket(location), f"{SCRATCH}/check-{uuid4().hex[:12]}", essential, others)
    print(remote_check.format_json(str(location), outcomes) if options.json else remote_check.format_table(outcomes))
    return remote_check.exit_status(outcomes)


def _gc(options: argparse.Namespace) -> None:
    from emuedit.operations.storage import clone_check, remote_gc

    root = dvc_remote.find_root()
    name, location = dvc_remote.read_location(root)
    bucket = Bucket(location)
    clone_check.check_clone(root, bucket)
    with waiting("collecting the data of all commits"):
        plan = remote_gc.plan_removal(root, name, bucket)
    print("kept: the data of all commits, branches, tags, stashes and experiments of this clone, and of the working folder")
    print("not kept: data needed only by commits of other clones that were never pushed to git")
    if plan.n_unreadable_commits:
        print(f"{plan.n_unreadable_commits} commits have a dvc.yaml that DVC cannot read; the data in their dvc.lock are kept")
    if plan.n_protected:
        reason = "because a commit or the working folder needs them"
        print(f"{plan.n_protected} objects that `dvc gc` would have deleted are kept, {reason}")
    if plan.n_lost_folders:
        print(f"{plan.n_lost_folders} folders of old commits were never pushed, or are deleted: their files are unknown")
    print(f"{location.url}: {len(plan.sizes)} objects, {sum(plan.sizes.values()) / 1e6:.1f} MB, that no commit needs")
    for key, size in list(plan.sizes.items())[:_N_SHOWN]:
        print(f"  {size:>12} {key}")
    if len(plan.sizes) > _N_SHOWN:
        print(f"  ... and {len(plan.sizes) - _N_SHOWN} more")
    if not plan.sizes:
        print("nothing to delete")
    elif not options.yes:
        print("nothing was deleted; `emuedit remote gc --yes` deletes these objects")
    else:
        with waiting("deleting"):
            bucket.delete([{"Key": key} for key in plan.sizes])
        print(f"{_deletion_text(bucket)}. The local cache is unchanged; `dvc gc --all-commits` cleans it")


def _deletion_text(bucket: Bucket) -> str:
    """Whether what was deleted in the bucket can be restored."""
    match bucket.is_versioned():
        case None:
            denied = "these credentials may not read it (s3:GetBucketVersioning); ask the owner of the bucket"
            return f"deleted; it is unknown whether the bucket keeps old versions, as {denied}"
        case False:
            return "deleted permanently"
    try:
        days = bucket_setup.old_versions_days(bucket)
    except RemoteError as error:
        return f"deleted; old versions are kept, it is unknown for how long ({error.code})"
    if days is None:
        return "deleted; old versions are kept and use space, as no rule removes them; `emuedit remote init` adds one"
    return f"deleted; old versions are kept for {days} days"


def _verify(options: argparse.Namespace) -> None:
    root = dvc_remote.find_root()
    bucket = Bucket(dvc_remote.read_location(root)[1])
    with waiting("comparing the data with the remote"):
        digests = set(data_manifest.describe_commit(root)["data"].values())
    lost_names, n_objects = _find_lost(root, bucket, digests)
    if lost_names and options.repair:
        print(f"uploading {data_objects.describe(lost_names)} again")
        with waiting("uploading"):
            data_objects.upload_again(bucket, lost_names, data_objects.cache_folder(root))
        lost_names, n_objects = _find_lost(root, bucket, digests)
    _refuse_lost(lost_names)
    print(f"the store has all {n_objects} objects of this commit's data")


def _find_lost(root: Path, bucket: Bucket, digests: set[str]) -> tuple[list[str], int]:
    """The objects of outputs with these hashes that the store lacks or cannot read, and the number of all."""
    with waiting("asking the store for each object"):
        return data_objects.find_lost(bucket, digests, data_objects.cache_folder(root))


def _refuse_lost(names: list[str]) -> None:
    if names:
        raise RemoteError(
            f"want all data of this commit in the remote, but the store lacks or cannot read {data_objects.describe(names)}, as "
            "after a deletion or a stop during uploads, which `dvc push` does not notice; run `emuedit remote verify --repair`"
        )


def _publish(options: argparse.Namespace) -> None:
    from emuedit.operations.storage.object_probes import conditional_writes, remove_folder

    del options
    root = dvc_remote.find_root()
    _, location = dvc_remote.read_location(root)
    bucket = Bucket(location)
    with waiting("comparing the data with the remote"):
        fields = data_manifest.describe_commit(root)
    lost_names, _ = _find_lost(root, bucket, set(fields["data"].values()))
    _refuse_lost(lost_names)
    folder = f"{SCRATCH}/publish-{uuid4().hex[:12]}"
    if not conditional_writes(bucket, folder) and not data_manifest.orders_versions(bucket):
        warning = "this store ignores `If-None-Match: *`: of two concurrent publishers, one would overwrite the other"
        print(f"WARNING: {warning}; publish from one place at a time", file=sys.stderr)
    remove_folder(bucket, folder)
    if not dvc_remote.is_pushed(root):
        print(
            f"WARNING: commit {fields['commit'][:10]} is in no git remote; run `git push` so that others can use it",
            file=sys.stderr,
        )
    manifest = data_manifest.publish(bucket, fields)
    print(
        f"published as number {manifest.number}: commit {manifest.commit[:10]}, {len(manifest.data)} outputs, to {location.url}"
    )


def _latest(options: argparse.Namespace) -> None:
    _, location = dvc_remote.read_location(dvc_remote.find_root())
    manifest = data_manifest.read_latest(Bucket(location))
    if manifest is None:
        raise RemoteError(f"want a published manifest in {location}, got none; run `emuedit remote publish`")
    if options.json:
        print(manifest.encode().decode(), end="")
        return
    print(f"number     {manifest.number}, {manifest.published:%Y-%m-%d %H:%M} UTC, by {manifest.publisher}")
    print(f"commit     {manifest.commit}")
    print(f"dvc.lock   sha256 {manifest.dvc_lock}")
    for path, digest in manifest.data.items():
        print(f"{digest:38} {path}")
    print(f"to fetch it: git fetch && git checkout {manifest.commit[:10]} && uv run dvc pull")


def _link(options: argparse.Namespace) -> None:
    from emuedit.operations.storage.report_link import link_report

    root = dvc_remote.find_root()
    bucket = Bucket(dvc_remote.read_location(root)[1])
    print(link_report(bucket, root, options.path, options.hours))
    credentials = bucket.credentials()
    note = ", or until the temporary credentials expire" if credentials is not None and credentials.token else ""
    print(f"anyone with the URL can open it for {options.hours:g} hours{note}", file=sys.stderr)
