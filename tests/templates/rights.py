"""Which actions each function's role may hold, as the project's table of rights has them; nothing else may be allowed."""

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

# By the logical id of the function.
RIGHTS = {
    "ScheduledExport": {
        "s3:PutObject",
        "s3:AbortMultipartUpload",
        "s3:ListMultipartUploadParts",
        "s3:GetObject",
        "kms:GenerateDataKey",
        "kms:Decrypt",
        "rds-db:connect",
        "secretsmanager:GetSecretValue",
        "sns:Publish",
    },
}

# Roles that no function has.
OTHER_ROLES = {
    "SchedulerRole": {"lambda:InvokeFunction", "sqs:SendMessage"},
}

# Actions that take no resource; everything else has to name one.
WITHOUT_RESOURCE = {action for action in LAMBDA_ITSELF if action.startswith(("xray:", "ec2:"))}

# Where a function may write and read objects, below the prefix of the deployment.
OBJECT_PREFIXES = {
    "ScheduledExport": {"postgres-exports/*", "runs/*"},
}
