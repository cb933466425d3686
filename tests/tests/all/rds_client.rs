//! The RDS client against the scripted endpoint: pages, states, refusals and patience.

use std::collections::BTreeMap;

use holdfast_local::rds::{Course, RdsServer, Server, Snapshot};
use holdfast_shared::domain::export_task::TaskStatus;
use holdfast_shared::domain::rds::{ServerId, ServerKind, ServerSettings, SnapshotType};
use holdfast_shared::fault::Fault;
use holdfast_shared::rds::{Moment, NewExport, NewServer, Rds, RdsErrorKind};

/// A client of an endpoint, as a function in the endpoint's region would have it.
pub async fn client(endpoint: &str) -> Rds {
    let credentials = aws_sdk_s3::config::Credentials::new("test", "test", None, None, "tests");
    let aws = aws_config::defaults(aws_config::BehaviorVersion::latest())
        .region("us-east-1")
        .endpoint_url(endpoint)
        .credentials_provider(credentials);
    Rds::new(&aws.load().await)
}

fn server(text: &str) -> ServerId {
    text.parse().unwrap()
}

#[tokio::test]
async fn snapshots_are_listed_over_pages_taken_and_deleted() {
    let rds = RdsServer::start().await.unwrap();
    rds.set_page_size(2);
    rds.add_server(Server::instance("shop"));
    for day in 1..=5 {
        let id = format!("rds:shop-2025-06-0{day}-02-00");
        rds.add_snapshot(Snapshot::automated(&id, "shop", &format!("2025-06-0{day}T02:00:00Z")));
    }
    rds.add_snapshot(Snapshot::automated("rds:other-2025-06-01-02-00", "other", "2025-06-01T02:00:00Z"));
    rds.add_snapshot(Snapshot::manual("before-migration", "shop", "2025-06-03T12:00:00Z"));
    rds.add_snapshot(Snapshot::automated("rds:shop-a", "shop", "2025-06-03T12:00:00Z").of_cluster());
    let client = client(&rds.endpoint()).await;

    let automated = client.snapshots(&server("shop"), SnapshotType::Automated).await.unwrap();
    assert_eq!(automated.len(), 5);
    assert!(automated.iter().all(|snapshot| snapshot.is_available() && snapshot.server == server("shop")));
    assert_eq!(rds.calls_of("DescribeDBSnapshots").len(), 3, "pages of two");
    assert_eq!(client.snapshots(&server("cluster:shop"), SnapshotType::Automated).await.unwrap().len(), 1);
    assert!(client.snapshots(&server("nobody"), SnapshotType::Automated).await.unwrap().is_empty());
    assert_eq!(client.snapshot(ServerKind::Instance, "absent").await.unwrap(), None);

    rds.set_creating(2);
    let tags = BTreeMap::from([("holdfast:environment".to_owned(), "test".to_owned())]);
    for _ in 0..2 {
        let taken = client.create_snapshot(&server("shop"), "manual-export-1", &tags).await.unwrap();
        assert_eq!((taken.status.as_str(), &taken.tags), ("creating", &tags), "asked for twice, taken once");
    }
    let looked = client.snapshot(ServerKind::Instance, "manual-export-1").await.unwrap().unwrap();
    assert_eq!((looked.is_available(), looked.created), (false, None));
    let looked = client.snapshot(ServerKind::Instance, "manual-export-1").await.unwrap().unwrap();
    assert!(looked.is_available() && looked.created.is_some());

    client.delete_snapshot(&looked.arn).await.unwrap();
    client.delete_snapshot(&looked.arn).await.unwrap();
    let refused = client.delete_snapshot(&automated[0].arn).await.unwrap_err();
    assert_eq!(refused.kind, RdsErrorKind::InvalidState);
    let absent = client.create_snapshot(&server("nobody"), "x", &tags).await.unwrap_err();
    assert_eq!(absent.kind, RdsErrorKind::NotFound);
}

#[tokio::test]
async fn a_task_takes_its_course_and_its_refusals_keep_their_reasons() {
    let rds = RdsServer::start().await.unwrap();
    for id in ["a", "b", "c", "d", "e", "f"] {
        rds.add_snapshot(Snapshot::manual(id, "shop", "2025-06-01T02:00:00Z"));
    }
    rds.script_task(Course::default());
    let client = client(&rds.endpoint()).await;
    let arn = |id: &str| rds.snapshots().iter().find(|snapshot| snapshot.id == id).unwrap().arn().parse().unwrap();
    let start = async |id: &str, snapshot: &str, role: &str, key: &str| {
        let (source, only) = (arn(snapshot), vec!["shop.public.orders".to_owned()]);
        let (bucket, prefix) = ("backups", "rds-exports/2025-06-21");
        let export = NewExport { id, source: &source, bucket, prefix, role_arn: role, kms_key_id: key, only: &only };
        client.start_export(&export).await
    };
    let task = start("export-1", "a", "role", "key").await.unwrap();
    assert_eq!((task.id.as_str(), task.status), ("export-1", TaskStatus::Starting));
    assert_eq!(rds.tasks()[0].only, ["shop.public.orders"]);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let task = client.export_task("export-1").await.unwrap().unwrap();
        seen.push((task.status.as_str().to_owned(), task.percent));
    }
    let seen: Vec<(&str, u8)> = seen.iter().map(|(status, percent)| (status.as_str(), *percent)).collect();
    assert_eq!(seen, [("STARTING", 0), ("IN_PROGRESS", 40), ("COMPLETE", 100), ("COMPLETE", 100)]);
    assert_eq!(client.export_task("export-2").await.unwrap(), None);

    rds.add_missing_role("missing");
    rds.disable_key("disabled");
    for (id, snapshot, role, key, kind) in [
        ("export-1", "a", "role", "key", RdsErrorKind::AlreadyExists),
        ("export-2", "a", "missing", "key", RdsErrorKind::RoleNotFound),
        ("export-2", "a", "role", "disabled", RdsErrorKind::KeyNotAccessible),
    ] {
        assert_eq!(start(id, snapshot, role, key).await.unwrap_err().kind, kind, "{kind:?}");
    }
    for (n, snapshot) in ["b", "c", "d", "e", "f"].iter().enumerate() {
        start(&format!("export-1{n}"), snapshot, "role", "key").await.unwrap();
    }
    let refused = start("export-9", "a", "role", "key").await.unwrap_err();
    assert_eq!(refused.kind, RdsErrorKind::Quota);
    assert_eq!(client.export_tasks_under_way().await.unwrap().len(), 5);
    let fault = Fault::from(start("export-9", "a", "missing", "key").await.unwrap_err());
    assert!(fault.code == "rds-export-role-not-found" && fault.message.contains("isn't allowed to assume"), "{fault}");
}

#[tokio::test]
async fn throttling_is_waited_for_and_rights_are_not() {
    let rds = RdsServer::start().await.unwrap();
    rds.fail("DescribeExportTasks", 400, "Throttling", "Rate exceeded", 2);
    let client = client(&rds.endpoint()).await;
    assert!(client.export_tasks_under_way().await.unwrap().is_empty());
    assert_eq!(rds.calls().len(), 3);
    rds.clear_calls();

    rds.fail("DescribeExportTasks", 403, "AccessDenied", "not authorized to perform: rds:DescribeExportTasks", 9);
    let fault = Fault::from(client.export_tasks_under_way().await.unwrap_err());
    assert_eq!((fault.code, rds.calls().len()), ("rds-access-denied", 1));
    assert!(fault.message.contains("rds:DescribeExportTasks"), "{fault}");

    rds.allow_only(["rds:CreateDBSnapshot".to_owned()]);
    rds.add_server(Server::instance("shop"));
    let tags = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    let refused = client.create_snapshot(&server("shop"), "tagged", &tags).await.unwrap_err();
    assert!(
        refused.kind == RdsErrorKind::AccessDenied && Fault::from(refused).message.contains("rds:AddTagsToResource")
    );
    client.create_snapshot(&server("shop"), "plain", &BTreeMap::new()).await.unwrap();
}

#[tokio::test]
async fn servers_are_made_of_snapshots_and_of_moments() {
    let rds = RdsServer::start().await.unwrap();
    rds.add_server(Server::instance("shop"));
    rds.add_server(Server::cluster("aurora"));
    rds.add_snapshot(Snapshot::manual("a", "shop", "2025-06-01T02:00:00Z"));
    rds.add_snapshot(Snapshot::manual("b", "aurora", "2025-06-01T02:00:00Z").of_cluster());
    rds.set_creating(1);
    let client = client(&rds.endpoint()).await;
    let new = |id: &str| NewServer {
        id: id.to_owned(),
        settings: ServerSettings {
            subnet_group: Some("private".to_owned()),
            security_groups: vec!["sg-7".to_owned(), "sg-8".to_owned()],
            ..ServerSettings::default()
        },
    };
    let snapshot = client.snapshot(ServerKind::Instance, "a").await.unwrap().unwrap();
    client.restore_snapshot(&snapshot, &new("shop-2")).await.unwrap();
    let made = client.server(&server("shop-2")).await.unwrap().unwrap();
    assert!(!made.is_available() && made.endpoint.is_none());
    let made = client.server(&server("shop-2")).await.unwrap().unwrap();
    assert!(made.is_available() && made.endpoint.is_some() && made.settings.port == Some(5432));
    let (found, asked) = (made.settings, new("").settings);
    assert_eq!((found.subnet_group.as_deref(), found.security_groups), (Some("private"), asked.security_groups));
    let again = client.restore_snapshot(&snapshot, &new("shop-2")).await.unwrap_err();
    assert_eq!(again.kind, RdsErrorKind::AlreadyExists);

    let snapshot = client.snapshot(ServerKind::Cluster, "b").await.unwrap().unwrap();
    client.restore_snapshot(&snapshot, &new("aurora-2")).await.unwrap();
    let (class, engine) = ("db.r6g.large", "aurora-postgresql");
    client.create_instance_in_cluster("aurora-2", "aurora-2-1", class, engine, &BTreeMap::new()).await.unwrap();
    let made = client.server(&server("cluster:aurora-2")).await.unwrap().unwrap();
    assert_eq!((made.engine.as_str(), made.members), (engine, vec!["aurora-2-1".to_owned()]));

    let at = |text: &str| Moment::At(text.parse().unwrap());
    client.restore_point_in_time(&server("shop"), Moment::Latest, &new("shop-3")).await.unwrap();
    client.restore_point_in_time(&server("shop"), at("2025-06-20T00:00:00Z"), &new("shop-4")).await.unwrap();
    let cluster = server("cluster:aurora");
    client.restore_point_in_time(&cluster, at("2025-06-20T00:00:00Z"), &new("aurora-3")).await.unwrap();
    let late = client.restore_point_in_time(&server("shop"), at("2025-07-20T00:00:00Z"), &new("x")).await;
    assert_eq!(late.unwrap_err().kind, RdsErrorKind::Refused);
    assert_eq!(client.server(&server("absent")).await.unwrap(), None);
}
