"""What we ask of the templates beyond what the linters see. Each rule is a generator of findings over a Project."""

from __future__ import annotations

import json
import re

import combinations
import costs
import lifecycle
import secrecy
from expressions import schedule_problem, time_zone_problem
from model import DIMENSIONS, ROOT, Finding, branches, listed, statements
from rights import DENIED, LAMBDA_ITSELF, OBJECTS, OTHER_ROLES, RIGHTS, WITHOUT_RESOURCE

FUNCTION = "AWS::Serverless::Function"
ALARM = "AWS::CloudWatch::Alarm"
RULES = []
# What a schedule may ask of restore-trigger.
SCHEDULED_MODES = {"verify", "resume"}


def rule(check):
    RULES.append(check)
    return check


def findings(project):
    return [finding for check in RULES for finding in check(project)]


def at(path, name):
    return f"{path} {name}"


def variables(project, path, function):
    """What the function sets itself, over what all in its template have."""
    shared = project.templates[path].get("Globals", {}).get("Function", {})
    both = [properties.get("Environment", {}).get("Variables", {}) for properties in (shared, function["Properties"])]
    return {**both[0], **both[1]}


def function_name(logical_id):
    """ScheduledExport is the function scheduled-export."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", logical_id).lower()


@rule
def settings_agree(project):
    if not project.declared_settings:
        yield Finding("setting-declared", "shared/src/config", "no declared settings found")
    for path, name, function in project.resources(FUNCTION):
        declared = project.declared_settings.get(function_name(name), frozenset())
        given = set(variables(project, path, function))
        for missing in sorted(declared - given):
            yield Finding("setting-not-set", at(path, name), f"{missing} is declared in shared/src/config and not set")
        for unknown in sorted(given - declared):
            yield Finding("setting-not-declared", at(path, name), f"{unknown} is set and not declared in shared/src/config")


@rule
def functions_are_complete(project):
    for path, name, function in project.resources(FUNCTION):
        where, properties = at(path, name), function["Properties"]
        shared = project.templates[path].get("Globals", {}).get("Function", {})
        logging = {**shared.get("LoggingConfig", {}), **properties.get("LoggingConfig", {})}
        group_at = project.resolve(path, logging.get("LogGroup"))
        group = group_at and project.templates[group_at[0]]["Resources"][group_at[1]]
        if not group or group["Type"] != "AWS::Logs::LogGroup":
            yield Finding("log-group", where, "LoggingConfig.LogGroup is no log group of ours")
        elif "RetentionInDays" not in group["Properties"]:
            yield Finding("log-group", at(*group_at), "keeps logs for ever: RetentionInDays is missing")
        if logging.get("LogFormat") != "JSON":
            yield Finding("log-format", where, "LoggingConfig.LogFormat is not JSON")
        if logging.get("ApplicationLogLevel") != "TRACE":
            yield Finding("log-level", where, "Lambda drops lines that LOG_LEVEL asks for: ApplicationLogLevel is not TRACE")
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
        owners[role] = function_name(name)
        if function_name(name) not in RIGHTS:
            yield Finding("right-table", at(path, name), "is not in tests/templates/rights.py")
    for path, name, role in project.resources("AWS::IAM::Role"):
        where, properties = at(path, name), role["Properties"]
        owner = owners.get((path, name))
        objects = OBJECTS.get(owner, {})
        allowed = RIGHTS.get(owner, set()) | set(objects) | LAMBDA_ITSELF if owner else OTHER_ROLES.get(name, set())
        if properties.get("ManagedPolicyArns"):
            yield Finding("right-too-many", where, "managed policies change by themselves; name the actions")
        granted, denied, on_objects = set(), set(), set()
        for policy in properties.get("Policies", []):
            for statement in statements(policy["PolicyDocument"]):
                if statement["Effect"] != "Allow":
                    if statement["Resource"] == "*" and "Condition" not in statement:
                        denied |= actions(statement["Action"])
                    continue
                if "NotAction" in statement or "NotResource" in statement:
                    yield Finding("right-too-many", where, "NotAction and NotResource allow what nobody has listed")
                granted |= actions(statement.get("Action"))
                yield from _statement(where, statement)
                on_objects |= object_rights(statement)
        for action in sorted(granted - allowed):
            yield Finding("right-too-many", where, f"{action} is not among the rights of {owner or name}")
        for action in sorted(allowed - granted):
            yield Finding("right-missing", where, f"{action} is among the rights of {owner or name} and not granted")
        if owner:
            wanted = {(action, prefix) for action, prefixes in objects.items() for prefix in prefixes}
            for action, prefix in sorted(on_objects - wanted):
                yield Finding("right-prefix", where, f"{action} on {prefix} is not among the rights of {owner}")
            for action, prefix in sorted(wanted - on_objects):
                yield Finding("right-missing", where, f"{action} on {prefix} is among the rights of {owner} and not granted")
            for action in sorted(DENIED - denied):
                yield Finding("right-deny", where, f"{action} is not denied everywhere and without condition")
        yield from _trust(where, properties)
        length = sum(len(json.dumps(rendered(policy["PolicyDocument"]), separators=(",", ":"))) for policy in properties.get("Policies", []))
        if length > 10_240:
            yield Finding("policy-size", where, f"with long names its policies have {length} characters; IAM takes 10240 a role")


def _trust(where, properties):
    for statement in statements(properties["AssumeRolePolicyDocument"]):
        service = statement.get("Principal", {}).get("Service")
        if service is None:
            if statement.get("Principal", {}).get("AWS") in (None, "*"):
                yield Finding("trust", where, "anybody may assume the role")
            continue
        condition = statement.get("Condition", {}).get("StringEquals", {})
        if service != "lambda.amazonaws.com" and condition.get("aws:SourceAccount") != {"Ref": "AWS::AccountId"}:
            yield Finding("trust", where, f"{service} may assume the role on behalf of other accounts: aws:SourceAccount is missing")


def object_rights(statement):
    """(action, prefix) of every right on objects of the bucket; what is no such prefix is told as it stands."""
    s3 = {action for action in actions(statement.get("Action")) if action.startswith("s3:")}
    if not s3:
        return set()
    found = set()
    for action in s3:
        if action.startswith("s3:ListBucket"):
            places = resource_texts(statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", "*"))
            if resource_texts(statement.get("Resource")) not in (["arn:${AWS::Partition}:s3:::${BucketName}"], ["arn:${AWS::Partition}:s3:::${RdsExportsBucketName}"]):
                places = [statement.get("Resource")]
        else:
            places = [re.sub(r"^arn:\$\{AWS::Partition\}:s3:::\$\{(?:RdsExports)?BucketName\}/", "", str(r)) for r in resource_texts(statement.get("Resource"))]
        for place in map(str, places):
            known = re.fullmatch(r"\$\{(Key|Any)Prefix\}(.+/)\*", place)
            found.add((action, ("{own}" if known[1] == "Key" else "{any}") + known[2] if known else place))
    return found


def rendered(value):
    """A policy as long as it can get: every branch taken, and long names for what is not known yet."""
    if isinstance(value, dict):
        if set(value) == {"Fn::If"}:
            return [rendered(side) for side in branches(value)]
        if set(value) == {"Fn::Sub"} and isinstance(value["Fn::Sub"], str):
            return re.sub(r"\$\{[^}]*\}", "x" * 24, value["Fn::Sub"])
        if len(value) == 1 and next(iter(value)) in ("Ref", "Fn::GetAtt", "Fn::Join", "Fn::Split"):
            return "x" * 100
        return {key: rendered(item) for key, item in value.items()}
    return [rendered(item) for item in value] if isinstance(value, list) else value


def _statement(where, statement):
    granted = actions(statement.get("Action"))
    resources = resource_texts(statement.get("Resource"))
    conditions = {key for operator in statement.get("Condition", {}).values() for key in operator}
    if any(action.startswith("rds:Delete") for action in granted):
        for resource in resources:
            if not str(resource).endswith("snapshot:${SnapshotNamePrefix}*"):
                yield Finding("right-snapshots", where, f"may delete {resource}, which Holdfast has not taken")
    if any(action == "iam:PassRole" for action in granted) and "iam:PassedToService" not in conditions:
        yield Finding("right-pass-role", where, "hands its role to any service: iam:PassedToService is missing")
    if "*" in resources and granted - WITHOUT_RESOURCE:
        yield Finding("right-resource", where, f"{', '.join(sorted(granted - WITHOUT_RESOURCE))} on every resource")
    # A grant's condition is that it is for a service; looking at a key takes none.
    keys = {action for action in granted if action.startswith("kms:")} - {"kms:DescribeKey"}
    wanted = "kms:GrantIsForAWSResource" if keys == {"kms:CreateGrant"} else "kms:ViaService"
    if keys and wanted not in conditions:
        yield Finding("right-kms", where, f"kms actions without {wanted}")


@rule
def the_scheduler_starts_what_has_a_schedule(project):
    scheduled = {
        f"function:${{AppName}}-${{Environment}}-{function_name(name)}"
        for _, name, function in project.resources(FUNCTION)
        if any(event["Type"] == "ScheduleV2" for event in function["Properties"].get("Events", {}).values())
    }
    for path, name, role in project.resources("AWS::IAM::Role"):
        if name != "SchedulerRole":
            continue
        may_start = {
            str(resource).split(":lambda:${AWS::Region}:${AWS::AccountId}:")[-1]
            for policy in role["Properties"]["Policies"]
            for statement in statements(policy["PolicyDocument"])
            if "lambda:InvokeFunction" in actions(statement["Action"])
            for resource in resource_texts(statement["Resource"])
        }
        for wrong in sorted(scheduled ^ may_start):
            yield Finding("scheduler-targets", at(path, name), f"{wrong} has a schedule or may be started by one, not both")


@rule
def a_restore_starts_by_hand(project):
    """Schedules start drills and polls, a thawed object of the bucket what waits for it; no alarm, topic or other service anything."""
    restore = {(path, name) for path, name, _ in project.resources(FUNCTION) if function_name(name) == "restore-trigger"}
    for path, name, function in project.resources(FUNCTION):
        if (path, name) not in restore:
            continue
        for event, definition in function["Properties"].get("Events", {}).items():
            where, properties = at(path, f"{name}.{event}"), definition["Properties"]
            if definition["Type"] == "ScheduleV2":
                if json.loads(properties.get("Input", "{}")).get("mode") not in SCHEDULED_MODES:
                    yield Finding("restore-origin", where, "a schedule may start a drill or a poll, and nothing else")
            elif definition["Type"] == "EventBridgeRule":
                pattern = properties.get("Pattern", {})
                wanted = {"bucket": {"name": [{"Ref": "BucketName"}]}}
                if (pattern.get("source"), pattern.get("detail-type"), pattern.get("detail")) != (["aws.s3"], ["Object Restore Completed"], wanted):
                    yield Finding("restore-origin", where, "of events only Object Restore Completed of the bucket may go on with a restore")
                if not properties.get("DeadLetterConfig"):
                    yield Finding("schedule-dlq", where, "DeadLetterConfig is missing")
            else:
                yield Finding("restore-origin", where, f"{definition['Type']} would start restores")
    for path, name, permission in project.resources("AWS::Lambda::Permission"):
        if project.resolve(path, permission["Properties"].get("FunctionName")) in restore:
            yield Finding("restore-origin", at(path, name), "lets another service start restores")
    for path, name, alarm in project.resources(ALARM):
        for kind in ("AlarmActions", "OKActions", "InsufficientDataActions"):
            if any(project.resolve(path, action) in restore for action in alarm["Properties"].get(kind, [])):
                yield Finding("restore-origin", at(path, name), "an alarm would start a restore")
    for path, name, subscription in project.resources("AWS::SNS::Subscription"):
        if subscription["Properties"].get("Protocol") == "lambda":
            yield Finding("restore-origin", at(path, name), "whoever publishes to the topic would start the function")


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
        if [d["Name"] for d in properties.get("Dimensions", [])] != list(DIMENSIONS["measure_database"]):
            yield Finding("dead-man", where, "the metric's dimensions are App, Environment and Database: another deployment's backups would count")
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


def dashboard_widgets(project):
    """(where, widget) of every dashboard; a body that is no JSON raises ValueError."""
    for path, name, dashboard in project.resources("AWS::CloudWatch::Dashboard"):
        text = dashboard["Properties"]["DashboardBody"]["Fn::Sub"]
        for widget in json.loads(re.sub(r"\$\{([\w:]+)\}", r"\1", text))["widgets"]:
            yield at(path, name), widget


def dashboard_metrics(project):
    """(metric, dimensions) of ours that dashboards show."""
    try:
        widgets = list(dashboard_widgets(project))
    except (ValueError, KeyError, TypeError):
        return
    for _, widget in widgets:
        for namespace, metric, *rest in widget["properties"].get("metrics", []):
            if namespace == "Holdfast":
                yield metric, tuple(word for word in rest if isinstance(word, str))[::2]


@rule
def dashboards_can_be_drawn(project):
    try:
        widgets = list(dashboard_widgets(project))
    except (ValueError, KeyError, TypeError) as error:
        yield Finding("dashboard", "infra/dashboard.yaml", f"is no dashboard: {error}")
        return
    if not widgets:
        yield Finding("dashboard", "infra/dashboard.yaml", "there is no dashboard")
    taken = set()
    for where, widget in widgets:
        title = widget.get("properties", {}).get("title")
        if widget.get("type") != "metric" or widget["x"] + widget["width"] > 24 or not widget["properties"].get("region"):
            yield Finding("dashboard", where, f"{title}: no metric widget within 24 columns, with a region")
        cells = {(x, y) for x in range(widget["x"], widget["x"] + widget["width"]) for y in range(widget["y"], widget["y"] + widget["height"])}
        if cells & taken:
            yield Finding("dashboard", where, f"{title} lies over another widget")
        taken |= cells
    for metric, dimensions in dashboard_metrics(project):
        if dimensions not in project.metrics.get(metric, set()):
            yield Finding("metric", "infra/dashboard.yaml", f"no function emits {metric} with {dimensions}")


@rule
def the_runbook_has_every_alarm(project):
    alarms = {
        alarm["Properties"]["AlarmName"]["Fn::Sub"].removeprefix("${AppName}-${Environment}-")
        for _, _, alarm in project.resources(ALARM)
    }
    alarms |= {
        event["Properties"]["Name"]["Fn::Sub"].removeprefix("${AppName}-${Environment}-")
        for _, _, event in project.resources("AWS::Events::Rule")
    }
    headings = re.findall(r"^## (.+)$", project.runbook, re.MULTILINE)
    told = {name for heading in headings for name in re.findall(r"`…-(\w+)`", heading)}
    for name in sorted(alarms - told):
        yield Finding("runbook", "docs/runbook.md", f"does not say what to do about {name}")
    for name in sorted(told - alarms):
        yield Finding("runbook", "docs/runbook.md", f"{name} is no alarm of the templates")


@rule
def metrics_are_those_of_the_code(project):
    watched = {}
    for path, name, alarm in project.resources(ALARM):
        properties = alarm["Properties"]
        if properties.get("Namespace") != "Holdfast":
            continue
        metric, where = properties.get("MetricName"), at(path, name)
        dimensions = tuple(dimension["Name"] for dimension in properties.get("Dimensions", []))
        watched.setdefault(metric, where)
        if metric not in project.metrics:
            yield Finding("metric", where, f"no function emits {metric}")
        elif dimensions not in project.metrics[metric]:
            yield Finding("metric", where, f"{metric} is emitted with {sorted(project.metrics[metric])}, not with {dimensions}")
    unseen = set(project.metrics) - set(watched) - {metric for metric, _ in dashboard_metrics(project)}
    for metric in sorted(unseen):
        yield Finding("metric", "infra/dashboard.yaml", f"{metric} is emitted, and neither watched by an alarm nor shown")


@rule
def buckets_are_safe(project):
    for path, name, bucket in project.resources("AWS::S3::Bucket"):
        where, properties = at(path, name), bucket["Properties"]
        for policy, wanted in (("DeletionPolicy", "RetainExceptOnCreate"), ("UpdateReplacePolicy", "Retain")):
            if bucket.get(policy) != wanted:
                why = "backups would go with the stack, or the bucket of a failed first deployment be in the way"
                yield Finding("bucket-retained", where, f"{policy} is not {wanted}: {why}")
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


RULES.extend([*lifecycle.RULES, *secrecy.RULES, *combinations.RULES, costs.the_costs_are_worked_out])


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
def samconfig_fits(project):
    parameters = project.templates[ROOT]["Parameters"]
    for environment, commands in project.samconfig.items():
        if not isinstance(commands, dict):
            continue
        deploy = commands.get("deploy", {}).get("parameters", {})
        if deploy and not {"CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"} <= set(deploy.get("capabilities", "").split()):
            yield Finding("samconfig", f"samconfig.toml {environment}", "deploy needs CAPABILITY_IAM and CAPABILITY_AUTO_EXPAND")
        overrides = deploy.get("parameter_overrides", [])
        yield from _overrides(f"samconfig.toml {environment}", overrides.split() if isinstance(overrides, str) else overrides, parameters)
    for path, overrides in project.parameter_files.items():
        yield from _overrides(path, overrides, parameters)


def _overrides(where, overrides, parameters):
    for override in overrides:
        name, _, value = override.partition("=")
        declared = parameters.get(name)
        if declared is None:
            yield Finding("samconfig", where, f"{override} is no parameter of template.yaml")
        elif "MinValue" in declared and not declared["MinValue"] <= float(value) <= declared.get("MaxValue", float("inf")):
            yield Finding("samconfig", where, f"{override} is outside what template.yaml allows")
        elif not re.search(declared.get("AllowedPattern", ""), value):
            yield Finding("samconfig", where, f"{override} does not match its pattern")
