"""What we ask of the templates beyond what the linters see. Each rule is a generator of findings over a Project."""

from __future__ import annotations

import json
import re

from expressions import schedule_problem, time_zone_problem
from model import ROOT, Finding, branches, listed, statements
from rights import LAMBDA_ITSELF, OBJECT_PREFIXES, OTHER_ROLES, RIGHTS, WITHOUT_RESOURCE

FUNCTION = "AWS::Serverless::Function"
ALARM = "AWS::CloudWatch::Alarm"
RULES = []


def rule(check):
    RULES.append(check)
    return check


def findings(project):
    return [finding for check in RULES for finding in check(project)]


def at(path, name):
    return f"{path} {name}"


def variables(function):
    return function["Properties"].get("Environment", {}).get("Variables", {})


def function_name(logical_id):
    """ScheduledExport is the function scheduled-export."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", logical_id).lower()


@rule
def settings_agree(project):
    if not project.declared_settings:
        yield Finding("setting-declared", "shared/src/config", "no declared settings found")
    for path, name, function in project.resources(FUNCTION):
        declared = project.declared_settings.get(function_name(name), frozenset())
        for missing in sorted(declared - set(variables(function))):
            yield Finding("setting-not-set", at(path, name), f"{missing} is declared in shared/src/config and not set")
        for unknown in sorted(set(variables(function)) - declared):
            yield Finding("setting-not-declared", at(path, name), f"{unknown} is set and not declared in shared/src/config")


@rule
def functions_are_complete(project):
    for path, name, function in project.resources(FUNCTION):
        where, properties = at(path, name), function["Properties"]
        logging = properties.get("LoggingConfig", {})
        group_at = project.resolve(path, logging.get("LogGroup"))
        group = group_at and project.templates[group_at[0]]["Resources"][group_at[1]]
        if not group or group["Type"] != "AWS::Logs::LogGroup":
            yield Finding("log-group", where, "LoggingConfig.LogGroup is no log group of ours")
        elif "RetentionInDays" not in group["Properties"]:
            yield Finding("log-group", at(*group_at), "keeps logs for ever: RetentionInDays is missing")
        if logging.get("LogFormat") != "JSON":
            yield Finding("log-format", where, "LoggingConfig.LogFormat is not JSON")
        invoke = properties.get("EventInvokeConfig", {})
        target = invoke.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination")
        if not target or not project.resolve(path, target):
            yield Finding("on-failure", where, "EventInvokeConfig has no OnFailure destination of ours: a failed event would vanish")
        if "MaximumRetryAttempts" not in invoke:
            yield Finding("on-failure", where, "EventInvokeConfig.MaximumRetryAttempts is left to chance")
        if not any(
            alarm["Properties"].get("Namespace") == "AWS/Lambda"
            and alarm["Properties"].get("MetricName") == "Errors"
            and alarm["Properties"].get("AlarmActions")
            and any(
                dimension["Name"] == "FunctionName" and project.resolve(alarm_path, dimension["Value"]) == (path, name)
                for dimension in alarm["Properties"].get("Dimensions", [])
            )
            for alarm_path, _, alarm in project.resources(ALARM)
        ):
            yield Finding("errors-alarm", where, "no alarm with an action watches its Errors")


@rule
def limits_hold(project):
    for path, name, function in project.resources(FUNCTION):
        shared = project.templates[path].get("Globals", {}).get("Function", {})
        properties = {**shared, **function["Properties"]}
        for what, value, least, greatest in (
            ("EphemeralStorage", properties.get("EphemeralStorage", {}).get("Size", 512), 512, 10240),
            ("MemorySize", properties.get("MemorySize", 128), 128, 10240),
            ("Timeout", properties.get("Timeout", 3), 1, 900),
            ("MaximumRetryAttempts", properties.get("EventInvokeConfig", {}).get("MaximumRetryAttempts", 2), 0, 2),
            ("MaximumEventAgeInSeconds", properties.get("EventInvokeConfig", {}).get("MaximumEventAgeInSeconds", 21600), 60, 21600),
        ):
            low, high = project.numbers(path, value)
            if not (least <= low and high <= greatest):
                yield Finding("limits", at(path, name), f"{what} can be {low}-{high}; Lambda takes {least}-{greatest}")
        if properties.get("Tracing") != "Active":
            yield Finding("tracing", at(path, name), "Tracing is not Active")


def schedules(project):
    """(path, where, properties) of every schedule, in a function's events or on its own."""
    for path, name, function in project.resources(FUNCTION):
        for event, definition in function["Properties"].get("Events", {}).items():
            if definition["Type"] in ("Schedule", "ScheduleV2"):
                yield path, at(path, f"{name}.{event}"), definition["Type"], definition["Properties"]
    for path, name, resource in project.resources("AWS::Scheduler::Schedule"):
        yield path, at(path, name), "ScheduleV2", resource["Properties"]


@rule
def schedules_are_sound(project):
    for path, where, kind, properties in schedules(project):
        if kind != "ScheduleV2":
            yield Finding("schedule-kind", where, "is a rule of the old kind, without time zone: use ScheduleV2")
        for wanted in ("DeadLetterConfig", "RetryPolicy", "RoleArn", "FlexibleTimeWindow"):
            if not properties.get(wanted):
                yield Finding("schedule-dlq" if wanted == "DeadLetterConfig" else "schedule-complete", where, f"{wanted} is missing")
        retry = properties.get("RetryPolicy") or {}
        if not 60 <= retry.get("MaximumEventAgeInSeconds", 86400) <= 86400 or not 0 <= retry.get("MaximumRetryAttempts", 185) <= 185:
            yield Finding("schedule-retry", where, f"RetryPolicy {retry} is outside 60-86400 seconds, 0-185 attempts")
        for value, problem_of, code in (
            (properties.get("ScheduleExpression"), schedule_problem, "schedule-expression"),
            (properties.get("ScheduleExpressionTimezone"), time_zone_problem, "schedule-time-zone"),
        ):
            if isinstance(value, dict):
                value = (project.parameter(path, value["Ref"]) or {}).get("Default")
            problem = problem_of(value) if isinstance(value, str) else "has no value, or no default"
            if problem:
                yield Finding(code, where, problem)
        try:
            text = json.loads(properties.get("Input", ""))
            if text.get("schedule_arn") != "<aws.scheduler.schedule-arn>" or text.get("scheduled_time") != "<aws.scheduler.scheduled-time>":
                yield Finding("schedule-input", where, "Input does not carry the schedule's ARN and time, by which a repeated event is known")
        except (ValueError, TypeError, AttributeError):
            yield Finding("schedule-input", where, "Input is not a JSON object")


def actions(value):
    return {action for action in listed(value or [])}


def resource_texts(value):
    return [item["Fn::Sub"] if isinstance(item, dict) and isinstance(item.get("Fn::Sub"), str) else item for item in listed(value)]


@rule
def roles_hold_their_rights_and_no_others(project):
    owners = {}
    for path, name, function in project.resources(FUNCTION):
        role = project.resolve(path, function["Properties"].get("Role"))
        if not role or role in owners:
            yield Finding("role", at(path, name), "has no role of its own (Role)")
            continue
        if "Policies" in function["Properties"]:
            yield Finding("role", at(path, name), "Policies stand beside the role, unseen by its review")
        owners[role] = name
        if name not in RIGHTS:
            yield Finding("right-table", at(path, name), "is not in tests/templates/rights.py")
    for path, name, role in project.resources("AWS::IAM::Role"):
        where, properties = at(path, name), role["Properties"]
        owner = owners.get((path, name))
        allowed = RIGHTS.get(owner, set()) | LAMBDA_ITSELF if owner else OTHER_ROLES.get(name, set())
        if properties.get("ManagedPolicyArns"):
            yield Finding("right-too-many", where, "managed policies change by themselves; name the actions")
        granted = set()
        for policy in properties.get("Policies", []):
            for statement in statements(policy["PolicyDocument"]):
                if statement["Effect"] != "Allow":
                    continue
                if "NotAction" in statement or "NotResource" in statement:
                    yield Finding("right-too-many", where, "NotAction and NotResource allow what nobody has listed")
                granted |= actions(statement.get("Action"))
                yield from _statement(where, owner, statement)
        for action in sorted(granted - allowed):
            yield Finding("right-too-many", where, f"{action} is not among the rights of {owner or name}")
        for action in sorted(allowed - granted):
            yield Finding("right-missing", where, f"{action} is among the rights of {owner or name} and not granted")
        for statement in statements(properties["AssumeRolePolicyDocument"]):
            service = statement.get("Principal", {}).get("Service")
            condition = statement.get("Condition", {}).get("StringEquals", {})
            if service != "lambda.amazonaws.com" and condition.get("aws:SourceAccount") != {"Ref": "AWS::AccountId"}:
                yield Finding("trust", where, f"{service} may assume the role on behalf of other accounts: aws:SourceAccount is missing")


def _statement(where, owner, statement):
    granted = actions(statement.get("Action"))
    resources = resource_texts(statement.get("Resource"))
    if "*" in resources and granted - WITHOUT_RESOURCE:
        yield Finding("right-resource", where, f"{', '.join(sorted(granted - WITHOUT_RESOURCE))} on every resource")
    if any(action.startswith("kms:") for action in granted) and "kms:ViaService" not in statement.get("Condition", {}).get("StringEquals", {}):
        yield Finding("right-kms", where, "kms actions without kms:ViaService")
    if any(action.startswith("s3:") for action in granted):
        for resource in resources:
            prefix = re.sub(r"^.*:::\$\{BucketName\}/\$\{KeyPrefix\}", "", str(resource))
            if prefix not in OBJECT_PREFIXES.get(owner, set()):
                yield Finding("right-prefix", where, f"{resource} is not one of the prefixes of {owner}")


@rule
def invocations_name_their_source(project):
    for path, name, permission in project.resources("AWS::Lambda::Permission"):
        for wanted in ("SourceAccount", "SourceArn"):
            if wanted not in permission["Properties"]:
                yield Finding("permission-source", at(path, name), f"{wanted} is missing: anyone's alarm could start the function")


@rule
def alarms_are_possible(project):
    for path, name, alarm in project.resources(ALARM):
        where, properties = at(path, name), alarm["Properties"]
        if "Metrics" in properties:
            continue
        period = properties["Period"]
        evaluations = project.numbers(path, properties["EvaluationPeriods"])[1]
        if period not in (10, 20, 30) and period % 60:
            yield Finding("alarm-period", where, f"Period {period} is not 10, 20, 30 or a multiple of 60")
        limit = 604_800 if period >= 3600 else 86_400
        if not period * evaluations <= limit:
            yield Finding("alarm-period", where, f"Period {period} x EvaluationPeriods up to {evaluations} is over {limit} s")
        if not properties.get("AlarmActions"):
            yield Finding("alarm-action", where, "tells nobody: AlarmActions is missing")
        if "TreatMissingData" not in properties:
            yield Finding("alarm-missing-data", where, "TreatMissingData is left to chance")


@rule
def a_missing_backup_is_noticed(project):
    found = False
    for path, name, alarm in project.resources(ALARM):
        properties = alarm["Properties"]
        if (properties.get("Namespace"), properties.get("MetricName")) != ("Holdfast", "BackupSucceeded"):
            continue
        found, where = True, at(path, name)
        if properties.get("TreatMissingData") != "breaching":
            yield Finding("dead-man", where, "no data is what it watches for: TreatMissingData must be breaching")
        if (properties.get("Statistic"), properties.get("ComparisonOperator"), properties.get("Threshold")) != ("Sum", "LessThanThreshold", 1):
            yield Finding("dead-man", where, "does not compare Sum < 1")
        if [d["Name"] for d in properties.get("Dimensions", [])] != ["Environment", "Database"]:
            yield Finding("dead-man", where, "the metric's dimensions are Environment and Database")
        targets = {project.resolve(path, action) for action in properties.get("AlarmActions", [])}
        functions = {(p, n) for p, n, _ in project.resources(FUNCTION)}
        topics = {(p, n) for p, n, _ in project.resources("AWS::SNS::Topic")}
        if not targets & functions:
            yield Finding("dead-man", where, "does not start the export")
        if not targets & topics:
            yield Finding("dead-man", where, "does not tell the topic")
        if not any(
            permission["Properties"].get("Principal") == "lambda.alarms.cloudwatch.amazonaws.com"
            and project.resolve(permission_path, permission["Properties"]["FunctionName"]) in targets
            and project.resolve(permission_path, permission["Properties"].get("SourceArn")) == (path, name)
            for permission_path, _, permission in project.resources("AWS::Lambda::Permission")
        ):
            yield Finding("dead-man", where, "has no permission to start the function")
    if not found:
        yield Finding("dead-man", "infra/alarms.yaml", "no alarm watches Holdfast/BackupSucceeded")


@rule
def buckets_are_safe(project):
    for path, name, bucket in project.resources("AWS::S3::Bucket"):
        where, properties = at(path, name), bucket["Properties"]
        for policy in ("DeletionPolicy", "UpdateReplacePolicy"):
            if bucket.get(policy) != "Retain":
                yield Finding("bucket-retained", where, f"{policy} is not Retain: backups would go with the stack")
        if properties.get("VersioningConfiguration", {}).get("Status") != "Enabled":
            yield Finding("bucket-versioning", where, "is not versioned")
        public = properties.get("PublicAccessBlockConfiguration", {})
        if not all(public.get(k) is True for k in ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")):
            yield Finding("bucket-public", where, "public access is not blocked in all four ways")
        if "BucketEncryption" not in properties:
            yield Finding("bucket-encryption", where, "has no encryption of its own")
        if properties.get("OwnershipControls", {}).get("Rules") != [{"ObjectOwnership": "BucketOwnerEnforced"}]:
            yield Finding("bucket-owner", where, "is not BucketOwnerEnforced")
        if not any(
            statement["Effect"] == "Deny" and statement.get("Condition", {}).get("Bool", {}).get("aws:SecureTransport") == "false"
            for policy_path, _, policy in project.resources("AWS::S3::BucketPolicy")
            if project.resolve(policy_path, policy["Properties"]["Bucket"]) == (path, name)
            for statement in statements(policy["Properties"]["PolicyDocument"])
        ):
            yield Finding("bucket-tls", where, "no policy denies requests without TLS")
        yield from _lifecycle(where, [r for r in properties.get("LifecycleConfiguration", {}).get("Rules", []) for r in branches(r)])


def _lifecycle(where, lifecycle):
    if not any(r.get("AbortIncompleteMultipartUpload") and not r.get("Prefix") for r in lifecycle):
        yield Finding("lifecycle-abort", where, "uploads that a killed run left behind are never aborted")
    for entry in lifecycle:
        days = {t["StorageClass"]: t["TransitionInDays"] for t in entry.get("Transitions", [])}
        if isinstance(days.get("STANDARD_IA"), int) and days["STANDARD_IA"] < 30:
            yield Finding("lifecycle-ia", where, f"{entry.get('Id')}: STANDARD_IA before 30 days is refused in some partitions and billed for 30 anyway")
        if "ExpirationInDays" in entry and not entry.get("Prefix"):
            yield Finding("lifecycle-owner", where, f"{entry.get('Id')}: expires every prefix, backups among them")
        prefix = entry.get("Prefix")
        text = prefix.get("Fn::Sub", "") if isinstance(prefix, dict) else str(prefix)
        if "ExpirationInDays" in entry and not text.endswith("runs/"):
            yield Finding("lifecycle-owner", where, f"{entry.get('Id')}: expires {text}, which retention owns")


@rule
def queues_are_encrypted_and_long(project):
    for path, name, queue in project.resources("AWS::SQS::Queue"):
        if queue["Properties"].get("SqsManagedSseEnabled") is not True and "KmsMasterKeyId" not in queue["Properties"]:
            yield Finding("queue-encrypted", at(path, name), "is not encrypted")


@rule
def parameters_are_documented(project):
    parameters = project.templates[ROOT]["Parameters"]
    documented = set(re.findall(r"^\| `([A-Z]\w+)` \|", project.deploy_doc, re.MULTILINE))
    for name in sorted(set(parameters) - documented):
        yield Finding("parameter-docs", "docs/deploy.md", f"the parameter {name} is not in the table")
    for name in sorted(documented - set(parameters)):
        yield Finding("parameter-docs", "docs/deploy.md", f"{name} is in the table and no parameter of template.yaml")
    grouped = [
        name
        for group in project.templates[ROOT]["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
        for name in group["Parameters"]
    ]
    for name in sorted(set(parameters) ^ set(grouped)):
        yield Finding("parameter-group", ROOT, f"{name} is a parameter or in a group of parameters, not both")
    for name, parameter in parameters.items():
        if not parameter.get("Description"):
            yield Finding("parameter-docs", ROOT, f"the parameter {name} has no description")
        pattern, default = parameter.get("AllowedPattern"), parameter.get("Default")
        if pattern and default is not None and not re.search(pattern, str(default)):
            yield Finding("parameter-default", ROOT, f"the default of {name} does not match its own pattern")


@rule
def secrets_stay_hidden(project):
    for path, template in project.templates.items():
        for name, parameter in template.get("Parameters", {}).items():
            if re.search(r"(Url|Password|Passkey|Token)$", name) and name != "S3EndpointUrl" and parameter.get("NoEcho") is not True:
                yield Finding("no-echo", at(path, name), "may hold a secret and is not NoEcho")


@rule
def samconfig_fits(project):
    parameters = project.templates[ROOT]["Parameters"]
    for environment, commands in project.samconfig.items():
        if not isinstance(commands, dict):
            continue
        deploy = commands.get("deploy", {}).get("parameters", {})
        if deploy and not {"CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"} <= set(deploy.get("capabilities", "").split()):
            yield Finding("samconfig", f"samconfig.toml {environment}", "deploy needs CAPABILITY_IAM and CAPABILITY_AUTO_EXPAND")
        overrides = deploy.get("parameter_overrides", [])
        for override in overrides.split() if isinstance(overrides, str) else overrides:
            if override.split("=")[0] not in parameters:
                yield Finding("samconfig", f"samconfig.toml {environment}", f"{override} is no parameter of template.yaml")
