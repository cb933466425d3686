"""Checks the deployment templates: linters on what is written and on what SAM makes of it, our own rules, and the rules themselves.

    .venv/bin/python tests/templates/check.py [--no-linters]

The last part seeds mistakes into copies of the templates and asks that each is found: a check that cannot fail is a
defect. Exits non-zero when anything failed.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import combinations
import expressions
import rules
from lifecycle import DOCUMENTED_POLICY
from model import ROOT, Finding, Project, branches

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "SAM_CLI_TELEMETRY": "0", "AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "eu-central-1", "NO_COLOR": "1"}

FUNCTIONS, ROLES, ALARMS, STORAGE, NOTIFICATIONS, DASHBOARD = (
    f"infra/{name}.yaml" for name in ("functions", "roles", "alarms", "storage", "notifications", "dashboard")
)


# --- the linters -----------------------------------------------------------------------------------------------------


def command(*arguments, cwd=REPOSITORY):
    done = subprocess.run(arguments, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def cfn_lint(paths, cwd):
    """cfn-lint's findings, in the form of ours."""
    code, output = command(str(BIN / "cfn-lint"), "--format", "json", "--", *map(str, paths), cwd=cwd)
    try:
        found = json.loads(output or "[]")
    except ValueError:
        return [Finding("cfn-lint", "cfn-lint", f"exit code {code}: {output.strip()[:500]}")]
    return [
        Finding("cfn-lint", f"{entry['Filename']}:{entry['Location']['Start']['LineNumber']}", f"{entry['Rule']['Id']} {entry['Message']}")
        for entry in found
    ]


def transformed(template):
    """The plain CloudFormation that the serverless transform makes of a template."""
    from samtranslator.public.exceptions import InvalidDocumentException
    from samtranslator.translator.managed_policy_translator import ManagedPolicyLoader
    from samtranslator.translator.transform import transform

    template = copy.deepcopy(template)
    for resource in template["Resources"].values():
        for key in ("CodeUri", "ContentUri"):  # what `sam package` uploads
            if isinstance(resource.get("Properties", {}).get(key), str):
                resource["Properties"][key] = "s3://bucket/key"
    os.environ.setdefault("AWS_DEFAULT_REGION", ENVIRONMENT["AWS_DEFAULT_REGION"])
    try:
        loader = ManagedPolicyLoader(None)
        loader._policy_map = {}  # no managed policy is named in the templates, so AWS need not be asked for them
        return transform(template, {}, loader)
    except InvalidDocumentException as error:
        raise ValueError("; ".join(cause.message for cause in error.causes)) from None


def on_transformed(project, judge):
    """What `judge(names, directory)` finds in the files that SAM's transform makes of the templates that want it."""
    with tempfile.TemporaryDirectory() as directory:
        names = []
        for path, template in project.templates.items():
            if "Transform" not in template:
                continue
            try:
                plain = transformed(template)
            except ValueError as error:
                return [Finding("transform", path, str(error))]
            for resource in plain["Resources"].values():
                nested = resource.get("Properties", {}).get("TemplateURL", "")
                if nested.startswith("infra/"):  # nested templates are linted as they are written
                    resource["Properties"]["TemplateURL"] = "https://s3.amazonaws.com/bucket/nested.yaml"
            names.append(f"{path.replace('/', '-').removesuffix('.yaml')}.json")
            (Path(directory) / names[-1]).write_text(json.dumps(plain, indent=1))
        return judge(names, directory)


def lint_transformed(project):
    return on_transformed(project, cfn_lint)


def lint_raw(directory):
    return cfn_lint([ROOT, *(str(p.relative_to(directory)) for p in sorted((directory / "infra").glob("*.yaml")))], directory)


def checkov(directory):
    """checkov's failures; what it is told to skip stands with its reason in the templates."""
    files = [argument for path in (ROOT, *sorted(str(p.relative_to(directory)) for p in (directory / "infra").glob("*.yaml"))) for argument in ("--file", path)]
    code, output = command(
        str(BIN / "checkov"), "--framework", "cloudformation", "--skip-download", "--quiet", "--compact", "--output", "json", *files, cwd=directory
    )
    try:
        reports = json.loads(output[output.index("["):] if output.lstrip().startswith("[") else output[output.index("{"):])
    except ValueError:
        return [Finding("checkov", "checkov", f"exit code {code}: {output.strip()[-500:]}")]
    return [
        Finding("checkov", f"{check['file_path']} {check['resource']}", f"{check['check_id']} {check['check_name']}")
        for report in rules.listed(reports)
        for check in report.get("results", {}).get("failed_checks", [])
    ]


def sam_validate(names, directory):
    findings = []
    for name in names:
        code, output = command(str(BIN / "sam"), "validate", "--lint", "--template", name, cwd=directory)
        findings += [] if code == 0 else [Finding("sam-validate", name, output.strip())]
    return findings


def shellcheck(directory):
    scripts = sorted(str(p.relative_to(directory)) for folder in (".ci", "scripts", "infra", "local") for p in (directory / folder).rglob("*") if is_script(p))
    code, output = command(str(BIN / "shellcheck"), "--external-sources", "--severity", "warning", "--format", "gcc", *scripts, cwd=directory)
    return [] if code == 0 else output.strip().splitlines()


def is_script(path):
    return path.is_file() and "dist" not in path.parts and (path.suffix == ".sh" or path.open("rb").read(19) == b"#!/usr/bin/env bash")


# --- mistakes that have to be found ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Seed:
    mistake: str
    rule: str
    change: object  # takes a copy of the project


def _properties(project, path, name):
    return project.templates[path]["Resources"][name]["Properties"]


def _export(project):
    return _properties(project, FUNCTIONS, "ScheduledExport")


def _shared(project):
    return project.templates[FUNCTIONS]["Globals"]["Function"]


def _retention(project):
    return _properties(project, FUNCTIONS, "Retention")


def _restore(project):
    return _properties(project, FUNCTIONS, "RestoreTrigger")


def _on_failure(project):
    return _restore(project)["EventInvokeConfig"]["DestinationConfig"]["OnFailure"]


def _failure_rule(project):
    return _properties(project, NOTIFICATIONS, "RestoreEventFailed")


def _schedule(project):
    return _export(project)["Events"]["Schedule"]["Properties"]


def _rights(project, role="ScheduledExportRole"):
    return _properties(project, ROLES, role)["Policies"][0]["PolicyDocument"]["Statement"]


def _default(name, value):
    def change(project):
        project.templates[ROOT]["Parameters"][name]["Default"] = value

    return change


def _declare(name):
    def change(project):
        project.declared_settings = {function: names | {name} for function, names in project.declared_settings.items()}

    return change


def _grant(action, resource="*"):
    def change(project):
        _rights(project).append({"Effect": "Allow", "Action": action, "Resource": resource})

    return change


def _lifecycle(project):
    return _properties(project, STORAGE, "Bucket")["LifecycleConfiguration"]["Rules"]


def _lifecycle_rule(**entry):
    def change(project):
        _lifecycle(project).append({"Id": "seeded", "Status": "Enabled", **entry})

    return change


def _more_periods(project):
    project.templates[ROOT]["Parameters"]["BackupMissingHours"]["MaxValue"] = 169


def _another_topic_in_the_alarm(project):
    _properties(project, ALARMS, "BackupMissing")["AlarmActions"].pop(0)


def _no_tls_policy(project):
    _properties(project, STORAGE, "BucketPolicy")["PolicyDocument"]["Statement"].pop(0)


def _no_via_service(project):
    _rights(project)[1]["Fn::If"][1].pop("Condition")


def _deny_gone(project):
    statements = _rights(project, "RetentionRole")
    statements[:] = [statement for statement in statements if statement.get("Sid") != "NeverForGood"]


def _grant_prefix(role, sid, prefix):
    def change(project):
        statement = next(s for s in _rights(project, role) if s.get("Sid") == sid)
        statement["Resource"].append({"Fn::Sub": f"arn:${{AWS::Partition}}:s3:::${{BucketName}}/{prefix}*"})

    return change


def _list_everything(project):
    next(s for s in _rights(project, "RetentionRole") if s.get("Sid") == "ListBackupsAndControlObjects").pop("Condition")


def _condition_on_uploads(project):
    statements = _rights(project, "RetentionRole")
    objects, uploads = (next(s for s in statements if s.get("Sid") == sid) for sid in ("ListBackupsAndControlObjects", "ListStaleUploads"))
    uploads["Condition"] = copy.deepcopy(objects["Condition"])


def _drill_input(text):
    def change(project):
        _restore(project)["Events"]["Drill"]["Properties"]["Input"] = text

    return change


def _let_alarms_restore(project):
    permission = copy.deepcopy(_properties(project, ALARMS, "BackupMissingMayStartTheExport"))
    permission["FunctionName"] = {"Ref": "RestoreTriggerName"}
    project.templates[ALARMS]["Resources"]["Seeded"] = {"Type": "AWS::Lambda::Permission", "Properties": permission}


def _unscheduled_role(project):
    _rights(project, "SchedulerRole")[0]["Resource"].pop()


def _long_policy(project):
    _rights(project).extend(copy.deepcopy(_rights(project)[0]) for _ in range(40))


def _widget(old, new):
    def change(project):
        body = _properties(project, DASHBOARD, "Dashboard")["DashboardBody"]
        assert old in body["Fn::Sub"], old
        body["Fn::Sub"] = body["Fn::Sub"].replace(old, new, 1)

    return change


def _emits(name):
    def change(project):
        project.metrics = {**project.metrics, name: {("App", "Environment")}}

    return change

def _memory_below_the_least(project):
    project.templates[ROOT]["Parameters"]["MemorySize"]["MinValue"] = 64


def _small_disk(project):
    project.templates[FUNCTIONS]["Globals"]["Function"]["EphemeralStorage"]["Size"] = 256


def _permission_without_account(project):
    _properties(project, ALARMS, "BackupMissingMayStartTheExport").pop("SourceAccount")


def _scheduler_without_account(project):
    _properties(project, ROLES, "SchedulerRole")["AssumeRolePolicyDocument"]["Statement"][0].pop("Condition")


def _log_for_ever(project):
    _properties(project, FUNCTIONS, "ScheduledExportLog").pop("RetentionInDays")


SEEDS = [
    Seed("a declared setting is not set", "setting-not-set", lambda p: _shared(p)["Environment"]["Variables"].pop("BUCKET")),
    Seed("a new setting is declared only in the code", "setting-not-set", _declare("SEEDED_SETTING")),
    Seed("a variable is misspelt", "setting-not-declared", lambda p: _export(p)["Environment"]["Variables"].update(BUKCET="x")),
    Seed("the configuration declares nothing", "setting-declared", lambda p: setattr(p, "declared_settings", {})),
    Seed("no log group", "log-group", lambda p: _export(p).pop("LoggingConfig")),
    Seed("logs kept for ever", "log-group", _log_for_ever),
    Seed("debug lines dropped by Lambda", "log-level", lambda p: _shared(p)["LoggingConfig"].pop("ApplicationLogLevel")),
    Seed("no failure destination", "on-failure", lambda p: _export(p)["EventInvokeConfig"].pop("DestinationConfig")),
    Seed("the passkey mailed with a failed request", "passkey", lambda p: _on_failure(p).update(Type="SNS", Destination={"Ref": "TopicArn"})),
    Seed("the passkey kept in a dead letter queue", "passkey", lambda p: _restore(p).update(DeadLetterQueue={"Type": "SQS", "TargetArn": {"Ref": "UndeliveredEventsArn"}})),
    Seed("the bus hands the request on", "passkey", lambda p: _failure_rule(p)["Targets"][0]["InputTransformer"]["InputPathsMap"].update(request="$.detail.requestPayload")),
    Seed("the bus hands everything on", "passkey", lambda p: _failure_rule(p)["Targets"][0].pop("InputTransformer")),
    Seed("the bus keeps requests", "passkey", lambda p: p.templates[NOTIFICATIONS]["Resources"].update(Seeded={"Type": "AWS::Events::Archive", "Properties": {}})),
    Seed("nobody hears of failed restores", "on-failure", lambda p: _failure_rule(p).pop("EventBusName")),
    Seed("no alarm on errors", "errors-alarm", lambda p: p.templates[ALARMS]["Resources"].pop("ScheduledExportErrors")),
    Seed(
        "the alarm watches another function",
        "errors-alarm",
        lambda p: _properties(p, ALARMS, "ScheduledExportErrors")["Dimensions"][0].update(Value="another-function"),
    ),
    Seed("no dead letter queue on the schedule", "schedule-dlq", lambda p: _schedule(p).pop("DeadLetterConfig")),
    Seed("a cron expression of five fields", "schedule-expression", _default("ScheduleExpression", "cron(0 2 * * ?)")),
    Seed("a cron expression with both days", "schedule-expression", _default("ScheduleExpression", "cron(0 2 * * * *)")),
    Seed("the hour 24", "schedule-expression", _default("ScheduleExpression", "cron(0 24 * * ? *)")),
    Seed("an unknown time zone", "schedule-time-zone", _default("ScheduleTimezone", "Europe/Zuerich")),
    Seed("the schedule's event without its time", "schedule-input", lambda p: _schedule(p).update(Input='{"purpose":"daily_backup"}')),
    Seed("the export may delete", "right-too-many", _grant("s3:DeleteObject")),
    Seed("the export may list", "right-too-many", _grant("s3:ListBucket")),
    Seed("a wildcard action", "right-too-many", _grant("s3:*")),
    Seed("retention may delete for good", "right-too-many", lambda p: _rights(p, "RetentionRole").append({"Effect": "Allow", "Action": "s3:DeleteObjectVersion", "Resource": "x"})),
    Seed("retention may delete manifests", "right-prefix", _grant_prefix("RetentionRole", "DeleteData", "${KeyPrefix}postgres-exports/metadata/")),
    Seed("retention may list everything", "right-prefix", _list_everything),
    Seed("uploads listed under a condition that never holds", "right-prefix", _condition_on_uploads),
    Seed("deleting for good is not denied", "right-deny", _deny_gone),
    Seed("restores write into every environment", "right-prefix", _grant_prefix("RestoreTriggerRole", "WritePinsRecordsAndDrillResults", "${AnyPrefix}restores/")),
    Seed("RDS's role handed to anybody", "right-pass-role", lambda p: next(s for s in _rights(p, "SnapshotExportRole") if s.get("Sid") == "HandRdsTheRoleItWritesWith").pop("Condition")),
    Seed("a grant for anybody", "right-kms", lambda p: next(s for s in _rights(p, "SnapshotExportRole") if s.get("Sid") == "LetRdsUseTheKey").pop("Condition")),
    Seed("snapshots of others deleted", "right-snapshots", lambda p: next(b for s in _rights(p, "RetentionRole") for b in branches(s) if b.get("Sid") == "DeleteItsOwnSnapshots")["Resource"].append({"Fn::Sub": "arn:x:snapshot:*"})),
    Seed("anybody may read the backups", "trust", lambda p: _properties(p, ROLES, "ReadersRole")["AssumeRolePolicyDocument"]["Statement"][0].update(Principal={"AWS": "*"})),
    Seed("a policy longer than IAM takes", "policy-size", _long_policy),
    Seed("two functions share a role", "role", lambda p: _retention(p).update(Role={"Ref": "ScheduledExportRoleArn"})),
    Seed("a schedule whose function it may not start", "scheduler-targets", _unscheduled_role),
    Seed("a scheduled restore", "restore-origin", _drill_input('{"schedule_arn":"<aws.scheduler.schedule-arn>","scheduled_time":"<aws.scheduler.scheduled-time>","mode":"swap"}')),
    Seed("alarms may start restores", "restore-origin", _let_alarms_restore),
    Seed("other buckets' objects go on with restores", "restore-origin", lambda p: _restore(p)["Events"]["Thawed"]["Properties"]["Pattern"].pop("detail")),
    Seed("a restore on every new object", "restore-origin", lambda p: _restore(p)["Events"].update(Seeded={"Type": "S3", "Properties": {}})),
    Seed("an alarm that the runbook does not know", "runbook", lambda p: _properties(p, ALARMS, "RestoreRefused").update(AlarmName={"Fn::Sub": "${AppName}-${Environment}-Seeded"})),
    Seed("an alarm on a metric that nothing emits", "metric", lambda p: _properties(p, ALARMS, "RestoreRefused").update(MetricName="RestoreRefusal")),
    Seed("an alarm with other dimensions", "metric", lambda p: _properties(p, ALARMS, "RestoreRefused")["Dimensions"].pop()),
    Seed("a metric that nobody looks at", "metric", _emits("SeededMetric")),
    Seed("a misspelt metric on the dashboard", "metric", _widget("BackupRows", "BackupRow")),
    Seed("a dashboard that is no JSON", "dashboard", _widget("\"widgets\"", "widgets")),
    Seed("a widget over another", "dashboard", _widget('"x": 8, "y": 0', '"x": 4, "y": 0')),
    Seed("a missing right", "right-missing", lambda p: _rights(p)[0]["Action"].remove("s3:AbortMultipartUpload")),
    Seed("rights on every object", "right-resource", _grant("s3:PutObject")),
    Seed("rights outside the prefixes", "right-prefix", _grant("s3:GetObject", {"Fn::Sub": "arn:${AWS::Partition}:s3:::${BucketName}/*"})),
    Seed("a key for everything", "right-kms", _no_via_service),
    Seed("the scheduler may start anything", "right-too-many", lambda p: _rights(p, "SchedulerRole")[0].update(Action="lambda:*")),
    Seed("a role for the schedulers of all accounts", "trust", _scheduler_without_account),
    Seed("a permission for the alarms of all accounts", "permission-source", _permission_without_account),
    Seed("an alarm over more than a week", "alarm-period", _more_periods),
    Seed("an odd period", "alarm-period", lambda p: _properties(p, ALARMS, "ScheduledExportErrors").update(Period=90)),
    Seed("missing data taken for a backup", "dead-man", lambda p: _properties(p, ALARMS, "BackupMissing").update(TreatMissingData="notBreaching")),
    Seed("the missed backup starts nothing", "dead-man", _another_topic_in_the_alarm),
    Seed("another deployment's backups count", "dead-man", lambda p: _properties(p, ALARMS, "BackupMissing")["Dimensions"].pop(0)),
    Seed("no permission for the alarm", "dead-man", lambda p: p.templates[ALARMS]["Resources"].pop("BackupMissingMayStartTheExport")),
    Seed("a tiny disk", "limits", _small_disk),
    Seed("a timeout over 15 minutes", "limits", lambda p: _export(p).update(Timeout=901)),
    Seed("too little memory allowed", "limits", _memory_below_the_least),
    Seed("the bucket goes with the stack", "bucket-retained", lambda p: p.templates[STORAGE]["Resources"]["Bucket"].pop("DeletionPolicy")),
    Seed("a failed deployment's bucket in the way", "bucket-retained", lambda p: p.templates[STORAGE]["Resources"]["FilesBucket"].update(DeletionPolicy="Retain")),
    Seed("an unversioned bucket", "bucket-versioning", lambda p: _properties(p, STORAGE, "Bucket").pop("VersioningConfiguration")),
    Seed("a public policy allowed", "bucket-public", lambda p: _properties(p, STORAGE, "Bucket")["PublicAccessBlockConfiguration"].update(BlockPublicPolicy=False)),
    Seed("plain HTTP allowed", "bucket-tls", _no_tls_policy),
    Seed("uploads never aborted", "lifecycle-abort", lambda p: _lifecycle(p).pop(0)),
    Seed("old versions kept for ever", "lifecycle-versions", lambda p: _lifecycle(p).pop(1)),
    Seed("STANDARD_IA after a week", "lifecycle-ia", _default("TransformedInfrequentAccessDays", 7)),
    Seed("a rule that moves twice within 30 days", "lifecycle-ia", _default("RawArchiveDays", 59)),
    Seed("deleted before it is archived", "lifecycle-rule", _default("RawExpirationDays", 90)),
    Seed("markers and days in one rule", "lifecycle-rule", lambda p: _lifecycle(p)[2].update(ExpirationInDays=30)),
    Seed("another number than the documented one", "lifecycle-days", _default("RawExpirationDays", 731)),
    Seed("the parameter file says something else", "lifecycle-days", lambda p: p.parameter_files.update({DOCUMENTED_POLICY: ["TransformedInfrequentAccessDays=8"]})),
    Seed("copies without metrics", "replication", lambda p: _properties(p, STORAGE, "Bucket")["ReplicationConfiguration"]["Fn::If"][1]["Rules"][1]["Destination"].pop("Metrics")),
    Seed("failed copies that nobody hears of", "replication", lambda p: _properties(p, STORAGE, "Bucket")["NotificationConfiguration"].pop("TopicConfigurations")),
    Seed("S3 may not tell the topic", "replication", lambda p: _properties(p, NOTIFICATIONS, "TopicPolicy")["PolicyDocument"]["Statement"].pop(2)),
    Seed("manifests deleted", "lifecycle-owner", _lifecycle_rule(Prefix="postgres-exports/", ExpirationInDays=800)),
    Seed("manifests archived", "lifecycle-days", _lifecycle_rule(Prefix={"Fn::Sub": "${KeyPrefix}postgres-exports/metadata/"}, Transitions=[{"StorageClass": "GLACIER", "TransitionInDays": 90}])),
    Seed("everything archived deeper", "lifecycle-days", _lifecycle_rule(Transitions=[{"StorageClass": "DEEP_ARCHIVE", "TransitionInDays": 365}])),
    Seed("two owners of a prefix", "lifecycle-days", _lifecycle_rule(Prefix={"Fn::Sub": "${KeyPrefix}postgres-exports/dumps/"}, ExpirationInDays=60)),
    Seed("a new kind of object without an owner", "prefix-owner", lambda p: setattr(p, "key_folders", p.key_folders | {"seeded/"})),
    Seed("an override that is not allowed", "samconfig", lambda p: p.parameter_files.update(seeded=["RawArchiveDays=10"])),
    Seed("a price that was not worked in", "costs", lambda p: setattr(p, "costs_doc", p.costs_doc.replace("| 0.0036 |", "| 0.0046 |"))),
    Seed("a sum that is wrong", "costs", lambda p: setattr(p, "costs_doc", p.costs_doc.replace("| 21.75 |", "| 20.75 |"))),
    Seed("an alarm that is not paid for", "costs", lambda p: p.templates[ALARMS]["Resources"].update(Seeded=copy.deepcopy(p.templates[ALARMS]["Resources"]["RestoreRefused"]))),
    Seed("a plain queue", "queue-encrypted", lambda p: _properties(p, NOTIFICATIONS, "UndeliveredEvents").pop("SqsManagedSseEnabled")),
    Seed("an undocumented parameter", "parameter-docs", lambda p: p.templates[ROOT]["Parameters"].update(Seeded={"Type": "String", "Description": "x"})),
    Seed("the URL shown in the console", "no-echo", lambda p: p.templates[ROOT]["Parameters"]["DatabaseUrl"].pop("NoEcho")),
    Seed("none taken for a URL", "combination", lambda p: p.templates[ROOT]["Rules"]["UrlNeedsUrl"]["Assertions"][0].update(Assert={"Fn::Not": [{"Fn::Equals": [{"Ref": "DatabaseUrl"}, ""]}]})),
    Seed("none taken for a restoring role", "combination", lambda p: p.templates[ROOT]["Rules"]["RestoringRoleLogsInTheSameWay"]["Assertions"][2]["Assert"]["Fn::Or"].pop(1)),
    Seed("subnets without groups", "combination", lambda p: p.templates[ROOT]["Rules"].pop("SubnetsAndGroupsTogether")),
    Seed("snapshots of nobody pruned", "combination", lambda p: p.templates[ROOT]["Rules"].pop("PruningNeedsSources")),
    Seed("hours that the function refuses", "parameter-value", lambda p: p.templates[ROOT]["Parameters"]["SweepAfterHours"].update(AllowedPattern="^[0-9]{0,4}$")),
    Seed("a policy that was cut off", "parameter-value", lambda p: p.templates[ROOT]["Parameters"]["RetentionPolicy"].pop("AllowedPattern")),
    Seed("a question without an answer", "no-answer", lambda p: p.templates[ROOT]["Parameters"]["DatabaseUrl"].update(Description="The URL.")),
    Seed("a misspelt override", "samconfig", lambda p: p.samconfig["default"]["deploy"]["parameters"].update(parameter_overrides=["Enviroment=x"])),
    Seed("capabilities forgotten", "samconfig", lambda p: p.samconfig["default"]["deploy"]["parameters"].update(capabilities="CAPABILITY_IAM")),
]

# For the linters: text to replace in a file, and where the finding has to come from.
LINT_SEEDS = [
    ("a nested stack lacks a parameter", ROOT, "        InVpc: !If [UsesVpc, \"true\", \"false\"]\n        ScheduleExpression", "        ScheduleExpression", "raw"),
    ("a misspelt property", ALARMS, "TreatMissingData: breaching", "TreatMissingDatas: breaching", "raw"),
    ("an unknown parameter in a role", ROLES, "!Ref TopicArn", "!Ref TopicAnr", "raw"),
    ("a schedule with a wrong mode", FUNCTIONS, "Mode: FLEXIBLE", "Mode: FLEXIBEL", "transformed"),
    ("a public policy allowed", STORAGE, "BlockPublicPolicy: true", "BlockPublicPolicy: false", "checkov"),
    ("a retry policy out of range", FUNCTIONS, "MaximumEventAgeInSeconds: 3600", "MaximumEventAgeInSeconds: 30", "transformed"),
]

EXPRESSIONS = {
    True: [
        "cron(0 2 * * ? *)", "cron(0/15 8-17 ? * MON-FRI *)", "cron(30 3 L * ? 2026)", "cron(0 4 ? * 2#1 *)",
        "cron(0 0 1,15 JAN,JUL ? 2026-2030)", "cron(*/10 * * * ? *)", "cron(0 9 15W * ? *)",
        "rate(1 hour)", "rate(12 hours)", "at(2026-11-20T02:00:00)",
    ],
    False: [
        "0 2 * * *", "cron(0 2 * * *)", "cron(60 2 * * ? *)", "cron(0 2 32 * ? *)", "cron(0 2 ? * ? *)", "cron(0 2 1 * MON *)",
        "cron(0 2 * 13 ? *)", "cron(0 2 ? * 8 *)", "cron(0 2 ? * MON#6 *)", "cron(0 5-2 * * ? *)", "cron(0 */0 * * ? *)",
        "cron(? 2 * * ? *)", "cron(0 2 * * ? 1969)", "rate(1 hours)", "rate(2 hour)", "rate(0 days)", "rate(1 week)", "at(2026-13-01T00:00:00)",
    ],
}


# --- running -----------------------------------------------------------------------------------------------------------


class Tally:
    def __init__(self):
        self.passed = self.failed = 0

    def test(self, name, problems):
        """One test: passes when there are no problems."""
        problems = list(problems)
        if problems:
            self.failed += 1
            print(f"FAIL {name}")
            for problem in problems:
                print(f"     {problem}")
        else:
            self.passed += 1
            print(f"ok   {name}")


def own_rules(tally, project):
    for check in rules.RULES:
        tally.test(f"rule: {check.__name__.replace('_', ' ')}", check(project))


def seeded(tally, project):
    # A state in which code and templates agree, so that what is found here does not depend on what is wrong today.
    set_today = {
        rules.function_name(name): frozenset(rules.variables(project, path, function))
        for path, name, function in project.resources(rules.FUNCTION)
    }
    project = dataclasses.replace(project, declared_settings=set_today)
    before = set(rules.findings(project))
    for seed in SEEDS:
        broken = copy.deepcopy(project)
        seed.change(broken)
        new = [f for f in rules.findings(broken) if f not in before]
        found = any(f.rule == seed.rule for f in new)
        tally.test(f"found: {seed.mistake} [{seed.rule}]", [] if found else [f"not found; instead: {[str(f) for f in new] or 'nothing'}"])
    exercised = {seed.rule for seed in SEEDS}
    print(f"     ({len(SEEDS)} mistakes seeded, {len(exercised)} rules exercised)")


def expression_tests(tally):
    for valid, texts in EXPRESSIONS.items():
        wrong = [text for text in texts if (expressions.schedule_problem(text) is None) != valid]
        tally.test(f"schedule expressions: {len(texts)} {'accepted' if valid else 'refused'}", wrong)
    zones = {"UTC": True, "Europe/Zurich": True, "America/Argentina/Ushuaia": True, "CEST": False, "Europe/Zuerich": False, "../etc": False}
    tally.test("time zones", [z for z, valid in zones.items() if (expressions.time_zone_problem(z) is None) != valid])


def layer_script(tally):
    """What can be asked of the layer's build script without building: it refuses before it has done anything."""
    script = REPOSITORY / "infra" / "pg-client-layer" / "build.sh"

    def refusal(*arguments, wanted, **variables):
        done = subprocess.run(["bash", str(script), *arguments], env={**ENVIRONMENT, "ZIG": "zig", **variables}, capture_output=True, text=True)
        if done.returncode == 0 or wanted not in done.stderr:
            return [f"exit code {done.returncode}, without {wanted!r}: {done.stderr.strip()[-300:]}"]
        return []

    tally.test("layer script: unknown architecture refused", refusal("--arch", "mips", wanted="arm64 or x86_64"))
    tally.test("layer script: unknown argument refused", refusal("--majr", "18", wanted="unknown argument"))
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "downloads").mkdir()
        (Path(directory) / "downloads" / "zlib-1.3.1.tar.gz").write_text("not what was published")
        problems = refusal("--major", "15", "--out", f"{directory}/out", wanted="another digest", WORK_DIR=directory)
        if (Path(directory) / "out").exists():
            problems.append("wrote a layer all the same")
        tally.test("layer script: a source with another digest refused", problems)


def sam_build():
    """`sam build` on a copy, with a cargo that only says what it was asked: every function and the layer get what is theirs."""
    with tempfile.TemporaryDirectory() as directory:
        copied, bin_directory = Path(directory) / "project", Path(directory) / "bin"
        shutil.copytree(REPOSITORY / "infra", copied / "infra", ignore=shutil.ignore_patterns("dist"))
        shutil.copy(REPOSITORY / ROOT, copied / ROOT)
        bin_directory.mkdir()
        cargo = bin_directory / "cargo"
        cargo.write_text(
            "#!/bin/sh\nset -e\n[ \"$1 $2\" = 'lambda --version' ] && exit 0\nfor last; do :; done\n"
            'mkdir -p "target/lambda/$last"\necho "$last $*" >"target/lambda/$last/bootstrap"\n'
        )
        cargo.chmod(0o755)
        layer = copied / "infra" / "pg-client-layer" / "dist"
        (layer / "bin").mkdir(parents=True)
        (layer / "bin" / "pg_dump").write_text("pg_dump")
        (layer / ".built").write_text("17 x86_64\n")
        environment = {**ENVIRONMENT, "PATH": f"{bin_directory}:{ENVIRONMENT['PATH']}", "ARCH": "x86_64", "PG_MAJOR": "17"}
        done = subprocess.run([str(BIN / "sam"), "build"], cwd=copied, env=environment, capture_output=True, text=True)
        if done.returncode:
            return [f"sam build: exit code {done.returncode}: {(done.stdout + done.stderr).strip()[-800:]}"]
        built = copied / ".aws-sam" / "build"
        problems = []
        for path, name, _ in Project.load(REPOSITORY).resources(rules.FUNCTION):
            stack = "" if path == ROOT else Path(path).stem.capitalize()
            bootstrap = built / stack / name / "bootstrap"
            wanted = f"{rules.function_name(name)} lambda build --release --x86-64 --package {rules.function_name(name)}"
            if not bootstrap.is_file() or bootstrap.read_text().strip() != wanted:
                problems.append(f"{bootstrap.relative_to(copied)} is not what was built for it")
        layer_content = [p.relative_to(built / "Functions" / "PgClientLayer") for p in (built / "Functions" / "PgClientLayer").rglob("*") if p.is_file()]
        if layer_content != [Path("bin/pg_dump")]:
            problems.append(f"the layer holds {layer_content}")
        return problems


def lint_seed(seed):
    name, path, old, new, where = seed
    text = (REPOSITORY / path).read_text()
    if old not in text:
        return name, [f"{path} no longer has {old!r}: adapt the seed"]
    with tempfile.TemporaryDirectory() as directory:
        copied = Path(directory)
        (copied / "infra").mkdir()
        (copied / "docs").mkdir()
        for source in (ROOT, "samconfig.toml", "docs/deploy.md", "docs/runbook.md", "docs/costs.md", *(f"infra/{p.name}" for p in (REPOSITORY / "infra").glob("*.yaml"))):
            content = (REPOSITORY / source).read_text()
            (copied / source).write_text(content.replace(old, new, 1) if source == path else content)
        judge = {"raw": lambda: cfn_lint([ROOT, path], copied), "transformed": lambda: lint_transformed(Project.load(copied)), "checkov": lambda: checkov(copied)}
        found = judge[where]()
    linter = "checkov" if where == "checkov" else f"cfn-lint ({where})"
    return f"found by {linter}: {name}", [] if found else ["not found"]


def linters(tally, project):
    """The linters take seconds each: they run beside each other and are reported in order."""
    jobs = [
        ("cfn-lint on the templates as written", lambda: lint_raw(REPOSITORY)),
        ("cfn-lint on the transformed templates", lambda: lint_transformed(project)),
        ("sam validate on the templates as written", lambda: sam_validate([p for p, t in project.templates.items() if "Transform" in t], REPOSITORY)),
        ("sam validate on the transformed templates", lambda: on_transformed(project, sam_validate)),
        ("checkov", lambda: checkov(REPOSITORY)),
        ("shellcheck on every script", lambda: shellcheck(REPOSITORY)),
        ("sam build makes every function and the layer", sam_build),
    ]
    results = {}
    gate = threading.Semaphore(3)

    def work(key, job):
        with gate:
            try:
                results[key] = job()
            except Exception as error:  # noqa: BLE001 - a check that breaks has failed, whatever broke it
                results[key] = [f"{type(error).__name__}: {error}"]

    threads = [threading.Thread(target=work, args=(name, job)) for name, job in jobs]
    threads += [threading.Thread(target=work, args=(seed[0], lambda seed=seed: lint_seed(seed))) for seed in LINT_SEEDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, _ in jobs:
        tally.test(name, results[name])
    for seed in LINT_SEEDS:
        outcome = results[seed[0]]
        name, problems = outcome if isinstance(outcome, tuple) else (seed[0], outcome)
        tally.test(name, problems)


def main():
    logging.getLogger("samtranslator").setLevel(logging.ERROR)  # it complains that its usage metrics are not collected
    project = Project.load(REPOSITORY)
    tally = Tally()
    own_rules(tally, project)
    expression_tests(tally)
    seeded(tally, project)
    layer_script(tally)
    tally.test("sam asks what the guide answers, and reads the policy as it is quoted", combinations.sam_takes_what_the_guide_says(project))
    if "--no-linters" not in sys.argv[1:]:
        linters(tally, project)
    print(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
