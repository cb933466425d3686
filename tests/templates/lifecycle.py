"""What the bucket's lifecycle comes to, prefix by prefix, once the templates are rendered."""

from __future__ import annotations


from model import Finding
from prefixes import DEFAULTS, DOCUMENTED, ENDLESS, PREFIXES
from render import rendered
from rights import OBJECTS

STORAGE = "infra/storage.yaml"
DOCUMENTED_POLICY = "infra/parameters/documented-policy.json"
# Deployments, and the days that have to come out; `own` is what each key begins with.
DEPLOYMENTS = [
    ("defaults", {}, "", DEFAULTS),
    (DOCUMENTED_POLICY, None, "", DOCUMENTED),
    ("one bucket", {"BucketLayout": "one", "PrefixByEnvironment": "true"}, "backups/production/", DEFAULTS),
    ("retention alone deletes", {"RawExpirationDays": "0", "TransformedExpirationDays": "0"}, "", ENDLESS),
    ("a lock", {"ObjectLockDays": "30", "ObjectLockMode": "COMPLIANCE"}, "", DEFAULTS),
    ("a key and a copy", {"KmsKeyArn": "arn:key", "ReplicaBucketArn": "arn:copy", "ReplicaKmsKeyArn": "arn:other"}, "", DEFAULTS),
]


def parameters_of(project, name, parameters):
    return dict(entry.split("=", 1) for entry in project.parameter_files[name]) if parameters is None else parameters


def lifecycle_rules(project, parameters, bucket="Bucket"):
    return rendered(project, parameters)[STORAGE][bucket]["Properties"]["LifecycleConfiguration"]["Rules"]


def days_of(rules, key):
    """(STANDARD_IA, GLACIER, deleted) of an object whose key begins so, of all rules that it falls under."""
    found = {"STANDARD_IA": set(), "GLACIER": set(), "deleted": set()}
    for entry in rules:
        if entry["Status"] != "Enabled" or not key.startswith(entry.get("Prefix", "")):
            continue
        for transition in entry.get("Transitions", []):
            found.setdefault(transition["StorageClass"], set()).add(int(transition["TransitionInDays"]))
        if "ExpirationInDays" in entry:
            found["deleted"].add(int(entry["ExpirationInDays"]))
    return found


def the_lifecycle_is_the_documented_one(project):
    """Each prefix has exactly the days of its group, from one rule each: no two rules meet."""
    for name, parameters, own, wanted in DEPLOYMENTS:
        rules = lifecycle_rules(project, parameters_of(project, name, parameters))
        for prefix, (group, _) in PREFIXES.items():
            found = days_of(rules, own + prefix + "2025-06-21/x")
            for kind, days in zip(("STANDARD_IA", "GLACIER", "deleted"), wanted[group]):
                if found.pop(kind) != ({days} if days is not None else set()):
                    yield Finding("lifecycle-days", f"{STORAGE} ({name})", f"{prefix}: {kind} is not after {days} days: {days_of(rules, own + prefix)}")
            if any(found.values()):
                yield Finding("lifecycle-days", f"{STORAGE} ({name})", f"{prefix}: goes to {sorted(found)} as well")
        known = {own + prefix for prefix in PREFIXES}
        for entry in rules:
            moves = "Transitions" in entry or "ExpirationInDays" in entry
            if moves and entry.get("Prefix") not in known:
                yield Finding("lifecycle-owner", f"{STORAGE} ({name})", f"{entry['Id']}: {entry.get('Prefix')} is none of tests/templates/prefixes.py")


def s3_takes_the_lifecycle(project):
    """What PutBucketLifecycleConfiguration refuses (Amazon S3 User Guide, "Constraints and considerations for transitions")."""
    for name, parameters, _, _ in DEPLOYMENTS:
        storage = rendered(project, parameters_of(project, name, parameters))[STORAGE]
        for bucket, resource in storage.items():
            if resource["Type"] != "AWS::S3::Bucket":
                continue
            where = f"{STORAGE} {bucket} ({name})"
            rules = resource["Properties"]["LifecycleConfiguration"]["Rules"]
            ids = [entry["Id"] for entry in rules]
            if len(set(ids)) != len(ids):
                yield Finding("lifecycle-rule", where, "two rules have one Id")
            if not any("AbortIncompleteMultipartUpload" in entry and not entry.get("Prefix") for entry in rules):
                yield Finding("lifecycle-abort", where, "uploads that a killed run left behind are never aborted")
            if not any("NoncurrentVersionExpiration" in entry and not entry.get("Prefix") for entry in rules):
                yield Finding("lifecycle-versions", where, "what was overwritten or deleted is paid for for ever")
            for entry in rules:
                days = {t["StorageClass"]: int(t["TransitionInDays"]) for t in entry.get("Transitions", [])}
                if days.get("STANDARD_IA", 30) < 30 and name != DOCUMENTED_POLICY:
                    yield Finding("lifecycle-ia", where, f"{entry['Id']}: STANDARD_IA before 30 days is refused in some partitions")
                if len(days) == 2 and days["GLACIER"] - days["STANDARD_IA"] < 30:
                    yield Finding("lifecycle-ia", where, f"{entry['Id']}: within one rule GLACIER has to be 30 days after STANDARD_IA")
                if "ExpirationInDays" in entry and any(int(entry["ExpirationInDays"]) <= day for day in days.values()):
                    yield Finding("lifecycle-rule", where, f"{entry['Id']}: deletes before it moves")
                if entry.get("ExpiredObjectDeleteMarker") and ("ExpirationInDays" in entry or days):
                    yield Finding("lifecycle-rule", where, f"{entry['Id']}: ExpiredObjectDeleteMarker needs a rule of its own")


def one_owner_deletes(project):
    """Only retention deletes, and where the table says so; what the code writes is in the table."""
    deleting = {
        (function, prefix.removeprefix("{own}"))
        for function, rights in OBJECTS.items()
        for prefix in rights.get("s3:DeleteObject", [])
    }
    wanted = {("retention", prefix) for prefix, (_, retention) in PREFIXES.items() if retention}
    for function, prefix in sorted(deleting ^ wanted):
        yield Finding("prefix-owner", "tests/rights.json", f"{function} and {prefix}: rights and tests/templates/prefixes.py do not agree")
    for folder in sorted(project.key_folders):
        if not any(folder.startswith(prefix) or prefix.startswith(folder) for prefix in PREFIXES):
            yield Finding("prefix-owner", "shared/src/domain/object_key.rs", f"{folder} has no owner in tests/templates/prefixes.py")


def a_failed_copy_is_told(project):
    """S3 tells of a copy that failed only where its rule has metrics, and never over EventBridge."""
    parameters = {"ReplicaBucketArn": "arn:copy"}
    bucket = rendered(project, parameters)[STORAGE]["Bucket"]["Properties"]
    for entry in bucket["ReplicationConfiguration"]["Rules"]:
        if entry["Destination"].get("Metrics", {}).get("Status") != "Enabled":
            yield Finding("replication", STORAGE, f"{entry['Id']}: without Metrics S3 tells of no failure")
    told = [entry for entry in bucket["NotificationConfiguration"].get("TopicConfigurations", []) if entry["Event"] == "s3:Replication:OperationFailedReplication"]
    publishers = {
        service
        for _, _, policy in project.resources("AWS::SNS::TopicPolicy")
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Allow"
        for service in [statement["Principal"].get("Service")]
    }
    if not told or "s3.amazonaws.com" not in publishers:
        yield Finding("replication", STORAGE, "nobody hears of copies that failed")


RULES = [a_failed_copy_is_told, the_lifecycle_is_the_documented_one, s3_takes_the_lifecycle, one_owner_deletes]
