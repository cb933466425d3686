//! The same calls on moto, an RDS that others have written: what our scripted endpoint answers is our own reading of the API.
//!
//! A task is complete there at once, and writes nothing; its course is in `snapshot_export`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use holdfast_shared::domain::export_task::TaskStatus;
use holdfast_shared::domain::rds::{ServerId, SnapshotType};
use holdfast_shared::rds::{NewExport, RdsErrorKind};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::rds_client::client;
use crate::rds_rig::{KMS_KEY, ROLE, Rig};

fn tool(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin").join(name);
    assert!(path.exists(), "scripts/setup-tests.sh installs {name}");
    path
}

struct Moto {
    endpoint: String,
    _server: Child,
}

impl Moto {
    async fn start() -> Self {
        let mut server = Command::new(tool("moto_server"))
            .args(["-H", "127.0.0.1", "-p", "0"])
            .env("PYTHONUNBUFFERED", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let endpoint = loop {
            let line = lines.next_line().await.unwrap().expect("moto says where it listens");
            if let Some((_, address)) = line.split_once("Running on ") {
                break address.trim().to_owned();
            }
        };
        // It would wait for somebody to read of its requests.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let moto = Self { endpoint, _server: server };
        // An instance, which moto gives an automated snapshot, and a cluster.
        let user = ["--master-username", "admin1", "--master-user-password", "password", "--storage-encrypted"];
        let instance = ["create-db-instance", "--db-instance-identifier", "shop", "--engine", "postgres"];
        let size = ["--db-instance-class", "db.t4g.micro", "--allocated-storage", "20"];
        let cluster = ["create-db-cluster", "--db-cluster-identifier", "aurora", "--engine", "aurora-postgresql"];
        let instance = [&instance[..], &size, &user].concat();
        let cluster = [&cluster[..], &user].concat();
        tokio::join!(moto.aws(&instance), moto.aws(&cluster));
        moto
    }

    /// The AWS CLI on it.
    async fn aws(&self, arguments: &[&str]) -> Value {
        let output = Command::new(tool("aws"))
            .args(["--endpoint-url", &self.endpoint, "--region", "us-east-1", "--output", "json", "rds"])
            .args(arguments)
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_understood_and_an_export_goes_from_its_snapshot_to_its_manifest() {
    let moto = Moto::start().await;
    every_call(&moto).await;
    an_export(&moto).await;
}

async fn every_call(moto: &Moto) {
    let rds = client(&moto.endpoint).await;
    let [shop, aurora, nobody] = ["shop", "cluster:aurora", "nobody"].map(|name| name.parse::<ServerId>().unwrap());

    let automated = rds.snapshots(&shop, SnapshotType::Automated).await.unwrap();
    assert!(automated[0].id().starts_with("rds:shop-") && automated[0].server == shop, "{automated:?}");
    assert!(automated[0].is_available() && automated[0].encrypted && automated[0].created.is_some());
    assert_eq!(automated[0].engine, "postgres");
    assert!(rds.snapshots(&nobody, SnapshotType::Automated).await.unwrap().is_empty());
    assert_eq!(rds.snapshot(shop.kind, "absent").await.unwrap(), None);
    assert_eq!(rds.snapshot(aurora.kind, "absent").await.unwrap(), None);

    let tags = BTreeMap::from([("holdfast:environment".to_owned(), "production".to_owned())]);
    let mut taken = Vec::new();
    for server in [&shop, &aurora] {
        let id = "manual-export-20250621-143000";
        rds.create_snapshot(server, id, &tags).await.unwrap();
        let again = rds.create_snapshot(server, id, &tags).await.unwrap();
        let found = rds.snapshot(server.kind, id).await.unwrap().unwrap();
        assert_eq!((&found.server, &found.tags, found.snapshot_type), (server, &tags, SnapshotType::Manual));
        assert_eq!(again.arn, found.arn);
        assert_eq!(rds.snapshots(server, SnapshotType::Manual).await.unwrap().len(), 1);
        taken.push(found.arn);
    }
    let absent = rds.create_snapshot(&nobody, "x", &tags).await.unwrap_err();
    assert_eq!(absent.kind, RdsErrorKind::NotFound);

    let only = ["shop.public.orders".to_owned(), "shop.audit".to_owned()];
    for (n, arn) in taken.iter().enumerate() {
        let id = format!("export-{n}");
        let (bucket, prefix) = ("backups", "postgres-exports/rds-exports/2025-06-21");
        let export =
            NewExport { id: &id, source: arn, bucket, prefix, role_arn: ROLE, kms_key_id: KMS_KEY, only: &only };
        rds.start_export(&export).await.unwrap();
        assert_eq!(rds.start_export(&export).await.unwrap_err().kind, RdsErrorKind::AlreadyExists);
        let task = rds.export_task(&id).await.unwrap().unwrap();
        assert_eq!((&task.status, task.source_arn), (&TaskStatus::Complete, arn.to_string()));
        assert_eq!((task.bucket.as_str(), task.prefix.as_str()), (bucket, prefix));
    }
    assert_eq!(rds.export_task("absent").await.unwrap(), None);
    assert!(rds.export_tasks_under_way().await.unwrap().is_empty());
    let seen = moto.aws(&["describe-export-tasks", "--export-task-identifier", "export-0"]).await;
    let seen = &seen["ExportTasks"][0];
    assert_eq!(
        (&seen["IamRoleArn"], &seen["KmsKeyId"], &seen["ExportOnly"]),
        (&json!(ROLE), &json!(KMS_KEY), &json!(only))
    );

    for arn in &taken {
        rds.delete_snapshot(arn).await.unwrap();
        assert_eq!(rds.snapshot(arn.kind(), arn.id()).await.unwrap(), None);
        rds.delete_snapshot(arn).await.unwrap();
    }
    let missing = NewExport {
        id: "export-9",
        source: &taken[0],
        bucket: "b",
        prefix: "p",
        role_arn: ROLE,
        kms_key_id: KMS_KEY,
        only: &[],
    };
    assert_eq!(rds.start_export(&missing).await.unwrap_err().kind, RdsErrorKind::NotFound);
}

async fn an_export(moto: &Moto) {
    let rig = Rig::start(&[("AWS_ENDPOINT_URL_RDS", &moto.endpoint), ("RDS_SOURCES", "shop")]).await;
    let newest = rig.run(json!({})).await;
    assert!(
        newest["status"] == "exporting" && newest["snapshot"].as_str().unwrap().starts_with("rds:shop-"),
        "{newest}"
    );
    let (code, _) = rig.fails(json!({})).await;
    assert_eq!(code, "snapshot-export-files-missing", "moto has completed the task and written nothing");
    let tasks = moto.aws(&["describe-export-tasks"]).await;
    let of_it = |task: &&Value| task["SourceArn"].as_str().unwrap().contains(":snapshot:rds:shop-");
    assert_eq!(tasks["ExportTasks"].as_array().unwrap().iter().filter(of_it).count(), 1);

    let begun = rig.run(json!({"take_snapshot": true, "tables": ["shop.public.orders"]})).await;
    assert_eq!(begun["status"], "waiting");
    let id = begun["id"].as_str().unwrap();
    let listed = moto.aws(&["describe-db-snapshots", "--snapshot-type", "manual"]).await;
    assert_eq!(listed["DBSnapshots"][0]["DBSnapshotIdentifier"], format!("manual-export-{id}"));
    rig.fails(json!({"mode": "poll"})).await;
    let (code, _) = rig.fails(json!({"mode": "poll"})).await;
    assert_eq!(code, "snapshot-exports-failed", "both tasks have ended, without files");

    for id in [id, newest["id"].as_str().unwrap()] {
        let day = format!("{}-{}-{}", &id[..4], &id[4..6], &id[6..8]);
        let (task, folder) = (format!("export-{id}"), format!("postgres-exports/rds-exports/{day}/export-{id}"));
        let info = json!({"exportTaskIdentifier": task, "status": "COMPLETE"});
        let tables =
            json!({"perTableStatus": [{"target": "shop.public.orders", "status": "COMPLETE", "sizeGB": 1e-9}]});
        rig.put(&format!("{folder}/shop/public.orders/1/part-00000.gz.parquet"), "PAR1").await;
        rig.put(&format!("{folder}/export_tables_info_{task}_from_1_to_1.json"), tables.to_string()).await;
        rig.put(&format!("{folder}/export_info_{task}.json"), info.to_string()).await;
    }
    let done = rig.poll().await;
    assert!(done.as_array().unwrap().iter().all(|export| export["status"] == "complete"), "{done}");
    assert_eq!((done.as_array().unwrap().len(), rig.keys("/metadata/").len()), (2, 2));
}
