//! The snapshot export on a scripted RDS and an S3 server that checks rights, and the events that RDS sends it.

use std::time::Duration;

use holdfast_local::lambda::{InvokeOutcome, LambdaOptions, LambdaServer};
use holdfast_local::rds::{ExportTarget, RdsServer, Server, Snapshot};
use holdfast_local::s3::{BucketOptions, Permissions, S3Options, S3Server};
use serde_json::{Value, json};

use crate::bed::{BUCKET, function, s3_client};

pub const SNAPSHOT_EXPORT: &str = "snapshot-export";
const KEY: (&str, &str) = ("snapshot-export-role", "snapshot-export-role-secret");
pub const ROLE: &str = "arn:aws:iam::123456789012:role/holdfast-rds-export";
pub const KMS_KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/export";
pub const AUTOMATED: &str = "rds:shop-2025-06-21-02-00";

fn rights() -> Permissions {
    crate::bed::rights(SNAPSHOT_EXPORT, &[""], &[])
}

pub struct Rig {
    pub s3: S3Server,
    pub rds: RdsServer,
    pub lambda: LambdaServer,
}

impl Rig {
    /// With an instance `shop`, a cluster `aurora` and an automated snapshot of each.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let s3 = S3Server::start(S3Options::default()).await.unwrap();
        s3.store().create_bucket(BUCKET, BucketOptions { versioning: true, object_lock: false }).unwrap();
        s3.store().add_key(KEY.0, KEY.1, Some(rights()));
        let rds = RdsServer::start().await.unwrap();
        rds.allow_only(crate::bed::rds_rights(SNAPSHOT_EXPORT));
        let S3Options { access_key, secret_key, region, .. } = S3Options::default();
        rds.set_target(ExportTarget { endpoint: s3.endpoint(), access_key, secret_key, region });
        rds.add_server(Server::instance("shop"));
        rds.add_server(Server::cluster("aurora"));
        rds.add_snapshot(Snapshot::automated(AUTOMATED, "shop", "2025-06-21T02:03:00Z"));
        rds.add_snapshot(Snapshot::automated("rds:shop-2025-06-20-02-00", "shop", "2025-06-20T02:03:00Z"));
        rds.add_snapshot(Snapshot::automated("rds:aurora-2025-06-21", "aurora", "2025-06-21T03:00:00Z").of_cluster());
        let lambda = LambdaServer::start(LambdaOptions::default()).await.unwrap();
        let rig = Self { s3, rds, lambda };
        rig.configure(settings);
        rig
    }

    pub fn configure(&self, settings: &[(&str, &str)]) {
        let usual = [
            ("ENVIRONMENT", "production"),
            ("RDS_SOURCES", "shop,cluster:aurora"),
            ("EXPORT_ROLE_ARN", ROLE),
            ("EXPORT_KMS_KEY_ARN", KMS_KEY),
            ("AWS_ENDPOINT_URL_RDS", &self.rds.endpoint()),
        ];
        let mut spec = function(SNAPSHOT_EXPORT, &self.s3, KEY, &[&usual, settings].concat());
        spec.timeout = Duration::from_secs(60);
        self.lambda.register(spec);
    }

    pub async fn invoke(&self, payload: Value) -> InvokeOutcome {
        self.lambda.invoke(SNAPSHOT_EXPORT, payload).await.unwrap()
    }

    pub async fn run(&self, payload: Value) -> Value {
        let outcome = self.invoke(payload).await;
        assert!(!outcome.is_error(), "{:#}\n{}", outcome.payload, outcome.log.join("\n"));
        outcome.payload
    }

    pub async fn poll(&self) -> Value {
        self.run(json!({"mode": "poll"})).await["exports"].clone()
    }

    /// Code and message.
    pub async fn fails(&self, payload: Value) -> (String, String) {
        let outcome = self.invoke(payload).await;
        assert!(outcome.is_error(), "{:#}", outcome.payload);
        let text = |field: &str| outcome.payload[field].as_str().unwrap_or_default().to_owned();
        (text("errorType"), text("errorMessage"))
    }

    pub fn keys(&self, part: &str) -> Vec<String> {
        let objects = self.s3.store().objects(BUCKET).into_iter();
        let live = objects.filter(|object| object.is_latest && !object.delete_marker).map(|object| object.key);
        live.filter(|key| key.contains(part)).collect()
    }

    pub async fn json(&self, key: &str) -> Value {
        let object = s3_client(&self.s3).get_object().bucket(BUCKET).key(key).send().await.unwrap();
        serde_json::from_slice(&object.body.collect().await.unwrap().into_bytes()).unwrap()
    }

    pub async fn manifest(&self) -> Value {
        let keys = self.keys("/metadata/");
        assert_eq!(keys.len(), 1, "{keys:?}");
        self.json(&keys[0]).await
    }

    /// As an operator could, or as time does.
    pub async fn edit_run(&self, id: &str, edit: impl FnOnce(&mut Value)) {
        let key = format!("runs/rds-exports/{id}.json");
        let mut run = self.json(&key).await;
        edit(&mut run);
        self.put(&key, run.to_string()).await;
    }

    pub async fn put(&self, key: &str, body: impl Into<Vec<u8>>) {
        let put = s3_client(&self.s3).put_object().bucket(BUCKET).key(key).body(body.into().into());
        put.send().await.unwrap();
    }

    pub fn told(&self, metric: &str) -> usize {
        self.lambda.logs(SNAPSHOT_EXPORT).join("\n").matches(&format!("\"{metric}\":1")).count()
    }

    pub fn started(&self) -> usize {
        self.rds.tasks().len()
    }
}

/// RDS's event through EventBridge.
pub fn event(id: &str, arn: &str) -> Value {
    let of_cluster = arn.contains(":cluster-snapshot:");
    let [detail_type, source_type] = match of_cluster {
        true => ["RDS DB Cluster Snapshot Event", "CLUSTER_SNAPSHOT"],
        false => ["RDS DB Snapshot Event", "SNAPSHOT"],
    };
    json!({"version": "0", "detail-type": detail_type, "source": "aws.rds", "account": "123456789012",
           "time": "2025-06-21T02:05:00Z", "region": "us-east-1", "resources": [arn],
           "detail": {"EventCategories": ["creation"], "SourceType": source_type, "SourceArn": arn, "EventID": id,
                      "Date": "2025-06-21T02:05:00.000Z", "SourceIdentifier": arn.rsplit("snapshot:").next(),
                      "Message": "Automated snapshot created"}})
}

/// The same event in other words.
pub fn saying(id: &str, arn: &str, message: &str) -> Value {
    let mut event = event(id, arn);
    event["detail"]["Message"] = json!(message);
    event
}

/// The same event through SNS.
pub fn notification(id: &str, arn: &str) -> Value {
    let message = json!({"Event Source": "db-snapshot", "Event Time": "2025-06-21 02:05:00.000", "Source ARN": arn,
        "Event ID": format!("http://docs.amazonwebservices.com/AmazonRDS/latest/UserGuide/USER_Events.html#{id}"),
        "Event Message": "Automated snapshot created"});
    json!({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": message.to_string()}}]})
}

pub fn arn(snapshot: &str) -> String {
    format!("arn:aws:rds:us-east-1:123456789012:snapshot:{snapshot}")
}
