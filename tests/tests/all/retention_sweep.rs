//! What dead runs leave behind: reported at first, swept after.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use holdfast_local::s3::S3Options;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::bed::BUCKET;
use crate::retention_rig::{Rig, day, days, dump_key, manifest, manifest_key};

/// As if what lies there had been lying for three days.
fn age(data: &Path) {
    let versions = data.join("buckets").join(BUCKET).join("versions");
    for file in std::fs::read_dir(versions).unwrap() {
        let path = file.unwrap().path();
        let mut version: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        version["last_modified"] = json!(Timestamp::now() - SignedDuration::from_hours(72));
        std::fs::write(&path, version.to_string()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_are_reported_first_and_swept_after() {
    let data = tempfile::tempdir().unwrap();
    let options = || S3Options { data_dir: Some(data.path().to_owned()), ..S3Options::default() };
    let rig = Rig::on(options(), &[]).await;
    days(&rig, 1..=2).await;
    days(&rig, 9..=11).await;
    let folder = "postgres-exports/rds-exports/2025-01-03/export-20250103-020000/";
    let orphans = [dump_key(&day(3)), dump_key(&day(4)), format!("{folder}a.parquet"), format!("{folder}t/b.parquet")];
    for key in &orphans {
        rig.put(key, "data").await;
    }
    rig.put("postgres-exports/dumps/readme.txt", "an operator's").await;
    let lease = |expires: &str| {
        json!({"state": "held", "backup_id": day(1), "event_key": "k", "request_id": "r", "since": "2025-01-01T02:00:00Z", "expires": expires}).to_string()
    };
    rig.put("runs/leases/production/dead.json", lease("2025-01-01T02:01:00Z")).await;
    rig.put("restores/leases/production/shop.json", lease("2025-01-01T02:01:00Z")).await;
    rig.put("restores/waiting/production/over.json", "").await;
    rig.put("restores/waiting/production/waits.json", "{}").await;
    rig.put("runs/leases/production/shop.json", lease("2999-01-01T00:00:00Z")).await;
    rig.put(
        &format!("pins/{}/old.json", day(1)),
        json!({"backup_id": day(1), "request_id": "old", "purpose": "restore", "expires": "2025-01-01T03:00:00Z"})
            .to_string(),
    )
    .await;
    let young = rig.run(json!({})).await;
    assert_eq!(young["plan"]["sweep"]["orphans_reported"], json!([]), "younger than a day");
    assert_eq!((&young["done"]["leases_removed"], &young["done"]["pins_removed"]), (&json!(2), &json!(1)));
    assert_eq!(young["done"]["entries_removed"], 0);
    rig.s3.stop().await;
    age(data.path());

    let (endpoint, published) = crate::notify::topic().await;
    let told = || std::mem::take(&mut *published.lock().unwrap());
    let topic = [
        ("NOTIFY_TOPIC_ARN", "arn:aws:sns:us-east-1:123456789012:backups"),
        ("AWS_ENDPOINT_URL_SNS", &endpoint),
        ("AWS_REGION", "us-east-1"),
    ];
    let rig = Rig::on(options(), &topic).await;
    rig.put(&dump_key(&day(5)), "young").await;
    let begin = async |key: String| {
        let created = rig.client().create_multipart_upload().bucket(BUCKET).key(key).send().await.unwrap();
        created.upload_id.unwrap()
    };
    let (_stale, living) = (begin(dump_key(&day(6))).await, begin(dump_key(&day(7))).await);
    begin("files/somebody.xlsx".to_owned()).await;
    rig.s3.store().age_uploads(Duration::from_secs(72 * 3600));
    let young = begin(dump_key(&day(8))).await;
    let mut held: Value = serde_json::from_str(&lease("2999-01-01T00:00:00Z")).unwrap();
    held["upload"] = json!({"key": dump_key(&day(7)), "upload_id": living});
    rig.put("runs/leases/production/living.json", held.to_string()).await;
    let dry = rig.run(json!({"dry_run": true})).await;
    let first = rig.run(json!({})).await;
    assert_eq!(dry["plan"], first["plan"]);
    assert_eq!((&first["done"]["uploads_aborted"], &first["done"]["entries_removed"]), (&json!(1), &json!(1)));
    let reported: Vec<&str> = first["plan"]["sweep"]["orphans_reported"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["key"].as_str().unwrap())
        .collect();
    assert_eq!(reported, [orphans[0].as_str(), &orphans[1], folder]);
    assert_eq!(first["plan"]["sweep"]["unknown_objects"], json!(["postgres-exports/dumps/readme.txt"]));
    assert!(orphans.iter().all(|key| rig.present().contains(key)));
    let notified = told();
    assert!(
        notified.len() == 1 && [3, 4].iter().all(|n| notified[0].contains(&format!("{}.dump", day(*n)))),
        "{notified:?}"
    );

    // A run that failed is tried again within minutes: it finds what has just been reported.
    let again = rig.run(json!({})).await;
    assert_eq!(again["plan"]["sweep"]["orphans_waiting"], first["plan"]["sweep"]["orphans_reported"]);
    assert_eq!(
        (&again["plan"]["sweep"]["orphans_reported"], &again["done"]["orphans_removed"]),
        (&json!([]), &json!(0))
    );
    assert_eq!(told(), Vec::<String>::new(), "once");
    rig.a_day_passes().await;

    // One turns out to have a manifest after all.
    rig.put(&manifest_key(&day(4)), manifest(&day(4)).to_string()).await;
    let second = rig.run(json!({})).await;
    assert_eq!(second["done"]["orphans_removed"], 2);
    let left = rig.present();
    assert!(
        left.contains(&orphans[1])
            && left.contains(&dump_key(&day(5)))
            && left.contains("postgres-exports/dumps/readme.txt")
    );
    assert!(!left.contains(&orphans[0]) && !left.iter().any(|key| key.starts_with(folder)));
    assert!(left.contains("runs/leases/production/shop.json") && !left.contains("runs/leases/production/dead.json"));
    let pending: BTreeSet<String> =
        rig.s3.store().pending_uploads(BUCKET).into_iter().map(|upload| upload.key).collect();
    let expected = [dump_key(&day(7)), dump_key(&day(8)), "files/somebody.xlsx".to_owned()];
    assert_eq!(pending, BTreeSet::from(expected), "the living, the young and the others': {living} {young}");
    assert!(left.contains("restores/waiting/production/waits.json"));
    assert!(!left.contains("restores/waiting/production/over.json"));
    rig.no_version_was_deleted();
}
