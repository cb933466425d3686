"""Which actions each function's role may hold, as the project's table of rights has them; nothing else may be allowed.

What each does on which objects stands in tests/rights.json, from which the integration tests make the keys that they give the
functions: a right that a function needs and the template lacks fails there, one that the template has too many fails here.
"""

import json
from pathlib import Path

# What Lambda cannot run a function without, whatever the function does.
LAMBDA_ITSELF = {
    "logs:CreateLogStream",
    "logs:PutLogEvents",
    "xray:PutTraceSegments",
    "xray:PutTelemetryRecords",
    "ec2:CreateNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:DeleteNetworkInterface",
    "ec2:AssignPrivateIpAddresses",
    "ec2:UnassignPrivateIpAddresses",
}

# By function and S3 action, the prefixes: {own} is KEY_PREFIX, {any} the same with any environment in the environment's place.
OBJECTS = json.loads((Path(__file__).resolve().parents[1] / "rights.json").read_text())

_EVERYWHERE = {"kms:GenerateDataKey", "kms:Decrypt", "secretsmanager:GetSecretValue", "sns:Publish"}

_FIND_SNAPSHOTS = {"rds:DescribeDBSnapshots", "rds:DescribeDBClusterSnapshots"}
_PRUNING = _FIND_SNAPSHOTS | {"rds:DeleteDBSnapshot", "rds:DeleteDBClusterSnapshot"}
_RDS_RESTORES = _FIND_SNAPSHOTS | {
    "rds:DescribeDBInstances",
    "rds:DescribeDBClusters",
    "rds:RestoreDBInstanceFromDBSnapshot",
    "rds:RestoreDBInstanceToPointInTime",
    "rds:RestoreDBClusterFromSnapshot",
    "rds:RestoreDBClusterToPointInTime",
    "rds:CreateDBInstance",
    "rds:AddTagsToResource",
}

# By function, what it may do beside S3.
RIGHTS = {
    "scheduled-export": _EVERYWHERE | {"rds-db:connect"},
    "retention": _EVERYWHERE | {"rds-db:connect"} | _PRUNING,
    "restore-trigger": _EVERYWHERE | {"rds-db:connect", "lambda:InvokeFunction"} | _RDS_RESTORES,
    # Aurora's snapshots have calls of their own; the bucket's objects under the export's key are read with kms:Decrypt.
    "snapshot-export": _EVERYWHERE
    | {
        "rds:StartExportTask",
        "rds:DescribeExportTasks",
        "rds:DescribeDBSnapshots",
        "rds:DescribeDBClusterSnapshots",
        "rds:CreateDBSnapshot",
        "rds:CreateDBClusterSnapshot",
        "rds:AddTagsToResource",
        "iam:PassRole",
        "kms:CreateGrant",
        "kms:DescribeKey",
    },
}

# What every function's role denies, whoever adds what to it.
DENIED = {"s3:DeleteObjectVersion", "s3:BypassGovernanceRetention"}

# Roles that no function has.
OTHER_ROLES = {
    "SchedulerRole": {"lambda:InvokeFunction", "sqs:SendMessage"},
    "RdsExportWriterRole": {"s3:PutObject*", "s3:GetObject*", "s3:DeleteObject*", "s3:ListBucket", "s3:GetBucketLocation"},
    "ReadersRole": {
        "s3:ListBucket",
        "s3:ListBucketVersions",
        "s3:GetObject",
        "s3:GetObjectVersion",
        "kms:Decrypt",
        "logs:FilterLogEvents",
        "logs:GetLogEvents",
        "logs:DescribeLogStreams",
        "cloudwatch:DescribeAlarms",
        "cloudwatch:GetDashboard",
        "cloudwatch:GetMetricData",
        "cloudwatch:ListMetrics",
    },
    # It cannot replicate deletions.
    "ReplicationRole": {
        "s3:GetReplicationConfiguration",
        "s3:ListBucket",
        "s3:GetObjectVersionForReplication",
        "s3:GetObjectVersionAcl",
        "s3:GetObjectVersionTagging",
        "s3:GetObjectRetention",
        "s3:GetObjectLegalHold",
        "s3:ReplicateObject",
        "s3:ReplicateTags",
        "kms:Decrypt",
        "kms:Encrypt",
    },
}

# Actions that take no resource; everything else has to name one.
WITHOUT_RESOURCE = {
    action for action in LAMBDA_ITSELF | OTHER_ROLES["ReadersRole"] if action.startswith(("xray:", "ec2:", "cloudwatch:"))
}
