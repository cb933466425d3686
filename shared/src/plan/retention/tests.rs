//! Each rule and guard in a row of its own, and the promises over random histories.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::catalog::Thresholds;
use super::policy::DEFAULT_POLICY;
use super::record::{Measure, Unreadable};
use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn environment(name: &str) -> Environment {
    name.parse().unwrap()
}

const THRESHOLDS: Thresholds = Thresholds { rows_percent: 30, bytes_percent: 50, vanished_tables: true };

/// A verified daily backup of production's `shop`, with a dump.
fn backup(id: BackupId) -> Record {
    let artifact = |kind: ArtifactKind| Artifact { kind, key: format!("{id}.{kind}"), size_bytes: 1 };
    Record {
        id,
        environment: environment("production"),
        database: "shop".to_owned(),
        purpose: "daily_backup".to_owned(),
        state: State::Complete,
        hold: false,
        verified: true,
        restorable: true,
        whole: true,
        as_configured: false,
        of_chosen_tables: false,
        missing: Vec::new(),
        artifacts: vec![artifact(ArtifactKind::Dump)],
        unfinished: Vec::new(),
        forced: false,
        problem: None,
        etag: String::new(),
        measure: Measure { rows: 100, bytes: 100, tables: Some(vec!["public.a".to_owned()]), selection: String::new() },
    }
}

/// The n-th day's backup of June 2025, at two in the morning.
fn day(n: i64) -> Record {
    backup(BackupId::from_timestamp(at("2025-06-01T02:00:00Z") + SignedDuration::from_hours(24 * (n - 1))))
}

struct Given {
    records: Vec<Record>,
    pins: Vec<Pin>,
    acknowledged: BTreeMap<(Environment, String), BackupId>,
    environments: Vec<Environment>,
    override_anomaly: bool,
    now: Timestamp,
    policy: Policy,
}

impl Given {
    fn new(policy: &str, records: Vec<Record>) -> Self {
        Self {
            records,
            pins: Vec::new(),
            acknowledged: BTreeMap::new(),
            environments: Vec::new(),
            override_anomaly: false,
            now: at("2025-06-30T12:00:00Z"),
            policy: policy.parse().unwrap(),
        }
    }

    fn catalog(&self) -> Catalog {
        let mut records: Vec<Record> = self.records.clone();
        records.sort_by_key(|record| std::cmp::Reverse(record.id));
        let mut catalog = Catalog::new(THRESHOLDS);
        records.into_iter().for_each(|record| catalog.add(record));
        catalog
    }

    fn circumstances(&self) -> Circumstances<'_> {
        Circumstances {
            environments: &self.environments,
            pins: &self.pins,
            acknowledged: &self.acknowledged,
            override_anomaly: self.override_anomaly,
            now: self.now,
        }
    }

    fn plan(&self) -> Plan {
        plan(&self.catalog(), &self.policy, &self.circumstances())
    }

    fn delete(&self, id: BackupId, forced: bool) -> Result<Option<Expiry>, Refusal> {
        plan_deletion(&self.catalog(), &self.circumstances(), id, forced)
    }
}

fn expired(plan: &Plan) -> Vec<String> {
    plan.expire.iter().map(|expiry| expiry.id.date()[8..].to_owned()).collect()
}

const LAST_TWO: &str = r#"{"rules":[{"keep_last":2}]}"#;

/// Five days' backups, one of them changed, under "keep the last two": who expires.
#[test]
fn each_guard_keeps_what_it_guards() {
    type Change = fn(&mut Given);
    let rows: [(&str, Change, &[&str]); 20] = [
        ("nothing special", |_| {}, &["01", "02", "03"]),
        ("on hold", |g| g.records[1].hold = true, &["01", "03"]),
        ("pinned", |g| g.pins = vec![pin(g.records[0].id)], &["02", "03"]),
        ("pin released", |g| g.pins = vec![Pin { released: true, ..pin(g.records[0].id) }], &["01", "02", "03"]),
        ("not understood", |g| g.records[2].problem = Some("odd".into()), &["01", "02"]),
        ("newest verified is old", |g| g.records[1..].iter_mut().for_each(|r| r.verified = false), &[]),
        ("none verified", |g| g.records.iter_mut().for_each(|r| r.verified = false), &[]),
        ("the newest not verified does not count", |g| g.records[4].verified = false, &["01", "02"]),
        (
            "only one that is not understood is verified",
            |g| {
                g.records.iter_mut().for_each(|r| r.verified = false);
                (g.records[4].verified, g.records[4].problem) = (true, Some("odd".into()));
            },
            &[],
        ),
        ("the newest's data is gone", |g| g.records[2..].iter_mut().for_each(|r| r.missing = r.kinds()), &["01", "03"]),
        ("no data is left anywhere", |g| g.records.iter_mut().for_each(|r| r.missing = r.kinds()), &["01", "02", "03"]),
        ("the newest are of a few tables", |g| g.records[1..].iter_mut().for_each(by_hand), &["02", "03"]),
        (
            "of a deployment that leaves tables out, the newest are of a few",
            |g| {
                g.records.iter_mut().for_each(nightly);
                g.records[2..].iter_mut().for_each(by_hand);
            },
            &["01", "03"],
        ),
        (
            "of one that is exported by hand only",
            |g| {
                g.records.iter_mut().for_each(|r| r.whole = false);
                g.records[2..].iter_mut().for_each(by_hand);
            },
            &["01", "03"],
        ),
        (
            "by hand more is left out than by the settings",
            |g| {
                g.records[..2].iter_mut().for_each(nightly);
                g.records[2..].iter_mut().for_each(|r| r.whole = false);
            },
            &["01", "03"],
        ),
        (
            "the newest whole one's data is gone",
            |g| {
                g.records[2..].iter_mut().for_each(by_hand);
                g.records[1].missing = g.records[1].kinds();
            },
            &["02", "03"],
        ),
        ("clock behind the newest", |g| g.now = at("2025-06-05T01:59:59Z"), &[]),
        ("clock at the newest", |g| g.now = at("2025-06-05T02:00:00Z"), &["01", "02", "03"]),
        ("tombstones do not count", |g| g.records[4].state = State::Expired, &["01", "02"]),
        (
            "others' environment",
            |g| {
                g.environments = vec![environment("production")];
                g.records.iter_mut().take(4).for_each(|r| r.environment = environment("staging"));
            },
            &[],
        ),
    ];
    for (what, change, expected) in rows {
        let mut given = Given::new(LAST_TWO, (1..=5).map(day).collect());
        change(&mut given);
        assert_eq!(expired(&given.plan()), expected, "{what}");
    }
}

/// Some tables, chosen by a request.
fn by_hand(record: &mut Record) {
    (record.whole, record.as_configured, record.of_chosen_tables) = (false, false, true);
}

/// What a schedule makes where the settings leave tables out.
fn nightly(record: &mut Record) {
    (record.whole, record.as_configured, record.of_chosen_tables) = (false, true, false);
}

fn pin(backup_id: BackupId) -> Pin {
    Pin { backup_id, request_id: "r-1".into(), purpose: "restore".into(), expires: None, released: false }
}

#[test]
fn without_a_verified_backup_the_block_says_so() {
    let mut given = Given::new(LAST_TWO, (1..=5).map(day).collect());
    given.records.iter_mut().for_each(|record| record.verified = false);
    let plan = given.plan();
    assert_eq!(plan.blocks.iter().map(|block| block.kind).collect::<Vec<_>>(), [BlockKind::NoVerifiedBackup]);
    assert_eq!(plan.keep[0].reasons[0].to_string(), "blocked: no_verified_backup");
}

#[test]
fn purposes_have_rules_of_their_own() {
    let mut records: Vec<Record> = (1..=30).map(day).collect();
    records[27].purpose = "testing".into();
    records[10].purpose = "testing".into();
    let given = Given::new(DEFAULT_POLICY, records);
    let plan = given.plan();
    // Two of thirty are tests; the young one stays for its seven days, and neither takes a place among the last 30.
    assert_eq!(expired(&plan), ["11"]);
    let reasons = |n: usize| plan.keep.iter().find(|k| k.id == given.records[n].id).unwrap().reasons.clone();
    assert_eq!(reasons(27), [Reason::Within(7)]);
    assert_eq!(reasons(0), [Reason::Last(30)]);
    assert_eq!(reasons(29), [Reason::NewestVerified, Reason::Last(30)]);
}

#[test]
fn environments_and_databases_are_counted_apart() {
    let mut records = Vec::new();
    for n in 1..=4 {
        for (second, environment_name, database) in
            [(0, "production", "shop"), (1, "production", "crm"), (2, "staging", "shop")]
        {
            let id = BackupId::from_timestamp(day(n).id.timestamp() + SignedDuration::from_secs(second));
            let place = (environment(environment_name), database.to_owned());
            records.push(Record { environment: place.0, database: place.1, ..backup(id) });
        }
    }
    // Staging has many more.
    for second in 10..50 {
        let id = BackupId::from_timestamp(day(4).id.timestamp() + SignedDuration::from_secs(second));
        records.push(Record { environment: environment("staging"), ..backup(id) });
    }
    let plan = Given::new(LAST_TWO, records).plan();
    let of = |environment: &str, database: &str| {
        plan.expire.iter().filter(|e| e.environment.as_str() == environment && e.database == database).count()
    };
    assert_eq!((of("production", "shop"), of("production", "crm"), of("staging", "shop")), (2, 2, 42));
}

#[test]
fn artifacts_expire_one_by_one_where_rules_are_for_kinds() {
    let mut records: Vec<Record> = (1..=4).map(day).collect();
    for record in &mut records {
        let key = format!("{}.transformed", record.id);
        record.artifacts.push(Artifact { kind: ArtifactKind::Transformed, key, size_bytes: 1 });
    }
    let policy = r#"{"rules":[{"artifacts":["transformed"],"keep_last":1},{"keep_last":3}]}"#;
    let plan = Given::new(policy, records).plan();
    let told: Vec<(String, usize, bool)> =
        plan.expire.iter().map(|e| (e.id.date()[8..].to_owned(), e.artifacts.len(), e.whole)).collect();
    assert_eq!(told, [("01".into(), 2, true), ("02".into(), 1, false), ("03".into(), 1, false)]);
}

#[test]
fn exports_that_cannot_be_restored_neither_protect_nor_block() {
    let export = |n: i64| {
        let mut record = day(n);
        record.restorable = false;
        record.artifacts[0].kind = ArtifactKind::RdsExport;
        // Whatever it says of rows, it says nothing about the dump before it.
        record.measure.rows = 0;
        record
    };
    // Of exports alone the newest stays.
    let only = Given::new(r#"{"rules":[{"keep_within_days":1}]}"#, (1..=3).map(export).collect()).plan();
    assert_eq!((expired(&only), only.blocks.len()), (vec!["01".to_owned(), "02".to_owned()], 0));
    // A newer export does not stand in for the newest backup.
    let mixed = Given::new(r#"{"rules":[{"keep_within_days":1}]}"#, vec![day(1), day(2), export(3)]).plan();
    assert_eq!(expired(&mixed), ["01", "03"]);
}

#[test]
fn the_newest_dump_stays_also_where_something_newer_is_verified() {
    let mut records: Vec<Record> = (1..=4).map(day).collect();
    records[2].artifacts[0].kind = ArtifactKind::Sql;
    records[3].artifacts[0].kind = ArtifactKind::Sql;
    let policy = r#"{"rules":[{"keep_within_days":1}]}"#;
    assert_eq!(expired(&Given::new(policy, records).plan()), ["01", "03"]);
}

#[test]
fn an_anomaly_blocks_until_it_is_acknowledged() {
    let mut given = Given::new(LAST_TWO, (1..=6).map(day).collect());
    given.records[4].measure.rows = 60;
    given.records[5].measure.rows = 60;
    given.records[5].environment = environment("production");
    let mut other: Vec<Record> = (1..=4).map(day).collect();
    for record in &mut other {
        record.id = record.id.next();
        record.database = "crm".into();
    }
    given.records.extend(other);
    let blocked = given.plan();
    assert_eq!(expired(&blocked), ["01", "02"], "the other database is not concerned");
    assert_eq!(blocked.blocks[0].kind, BlockKind::Anomaly);
    assert_eq!(blocked.blocks[0].detail, "20250605-020000 after 20250604-020000: rows fell from 100 to 60");

    let anomaly = blocked.anomalies[0].clone();
    given.acknowledged.insert((anomaly.environment, anomaly.database), anomaly.after);
    assert_eq!(expired(&given.plan()).len(), 6);
    given.acknowledged.clear();
    given.override_anomaly = true;
    assert_eq!(expired(&given.plan()).len(), 6);
}

#[test]
fn backups_are_compared_with_the_like_only() {
    type Change = fn(&mut Record);
    let rows: [(&str, Change, bool); 5] = [
        ("the same purpose", |_| {}, true),
        ("another purpose", |r| r.purpose = "on_demand".into(), false),
        ("another selection", |r| r.measure.selection = "{}".into(), false),
        ("another database", |r| r.database = "crm".into(), false),
        ("not verified", |r| r.verified = false, false),
    ];
    for (what, change, anomalous) in rows {
        let mut given = Given::new(LAST_TWO, (1..=2).map(day).collect());
        given.records[1].measure.rows = 1;
        change(&mut given.records[1]);
        assert_eq!(!given.catalog().anomalies().is_empty(), anomalous, "{what}");
    }
}

#[test]
fn what_was_begun_is_finished_unless_it_is_the_last_there_is() {
    let unfinished = |n: i64| {
        let mut record = day(n);
        record.state = State::Expired;
        record.unfinished = std::mem::take(&mut record.artifacts);
        record
    };
    let given = Given::new(LAST_TWO, vec![unfinished(1), day(2)]);
    assert_eq!(given.plan().resume.len(), 1);
    let alone = Given::new(LAST_TWO, vec![unfinished(1)]);
    assert_eq!((alone.plan().resume.len(), alone.plan().warnings.len()), (0, 1));
    let mut forced = Given::new(LAST_TWO, vec![unfinished(1)]);
    forced.records[0].forced = true;
    assert_eq!(forced.plan().resume.len(), 1);
    let mut pinned = given;
    pinned.pins = vec![pin(pinned.records[0].id)];
    assert_eq!(pinned.plan().resume.len(), 0);
}

/// A tombstone whose data is still there, beside nothing or beside exports for analysis.
#[test]
fn the_last_data_of_a_tombstone_meets_the_guard() {
    let mut gone = day(1);
    gone.state = State::Expired;
    gone.unfinished = std::mem::take(&mut gone.artifacts);
    let export = |n: i64| {
        let mut record = day(n);
        record.restorable = false;
        record.artifacts[0].kind = ArtifactKind::RdsExport;
        record
    };
    let mut unverified = day(2);
    unverified.verified = false;
    for (what, others, refused) in [
        ("alone", vec![], true),
        ("beside exports", vec![export(2), export(3)], true),
        ("beside what nobody has verified", vec![unverified], true),
        ("beside a verified one", vec![day(2)], false),
    ] {
        let given = Given::new(LAST_TWO, [vec![gone.clone()], others].concat());
        assert_eq!(given.plan().resume.is_empty(), refused, "{what}");
        let deleted = given.delete(gone.id, false);
        assert_eq!(matches!(deleted, Err(Refusal::NoneVerified { .. })), refused, "{what}: {deleted:?}");
        assert!(matches!(given.delete(gone.id, true), Ok(Some(expiry)) if expiry.forced), "{what}, forced");
    }
    // Of an export that no server can be made of no more than that is lost.
    let mut gone = export(1);
    gone.state = State::Expired;
    gone.unfinished = std::mem::take(&mut gone.artifacts);
    let given = Given::new(LAST_TWO, vec![gone, export(2)]);
    assert_eq!(given.plan().resume.len(), 1);
    assert!(given.delete(day(1).id, false).is_ok());
}

/// Somebody wants it kept after all: a tombstone, and a backup of which one kind has expired.
#[test]
fn a_hold_stops_what_was_begun() {
    let mut gone = day(1);
    gone.state = State::Expired;
    gone.unfinished = std::mem::take(&mut gone.artifacts);
    let mut partly = day(2);
    let artifact = |kind: ArtifactKind| Artifact { kind, key: format!("{}.{kind}", partly.id), size_bytes: 1 };
    partly.unfinished = vec![artifact(ArtifactKind::Transformed)];
    let mut given = Given::new(LAST_TWO, vec![gone, partly, day(3)]);
    assert_eq!(given.plan().resume.len(), 2);
    given.records[..2].iter_mut().for_each(|record| record.hold = true);
    let plan = given.plan();
    assert_eq!(plan.resume, []);
    let told = |id: BackupId| format!("backup {id} is expired, and its data stays for now: hold");
    assert_eq!(plan.warnings, [told(day(2).id), told(day(1).id)]);
    given.records[0].forced = true;
    assert_eq!(given.plan().resume, []);
}

#[test]
fn a_deletion_by_hand_meets_the_same_guards() {
    type Change = fn(&mut Given);
    let rows: [(&str, i64, bool, Change, Option<&str>); 12] = [
        ("an old one", 1, false, |_| {}, None),
        ("the newest", 5, false, |_| {}, Some("newest verified")),
        ("the newest, forced", 5, true, |_| {}, None),
        ("unknown", 9, false, |_| {}, Some("there is no backup")),
        ("pinned", 1, true, |g| g.pins = vec![pin(g.records[0].id)], Some("pinned by r-1 (restore)")),
        ("held", 1, true, |g| g.records[0].hold = true, Some("on hold")),
        ("not understood", 1, true, |g| g.records[0].problem = Some("odd".into()), Some("not understood: odd")),
        ("none verified", 1, false, |g| g.records.iter_mut().for_each(|r| r.verified = false), Some("is verified")),
        ("none verified, forced", 1, true, |g| g.records.iter_mut().for_each(|r| r.verified = false), None),
        ("anomaly", 1, true, |g| g.records[4].measure.rows = 1, Some("rows fell from 100 to 1")),
        ("others' environment", 1, true, |g| g.environments = vec![environment("staging")], Some("look after")),
        ("one dated in the future", 5, true, |g| g.now = at("2025-06-04T12:00:00Z"), None),
    ];
    for (what, n, forced, change, refusal) in rows {
        let mut given = Given::new(LAST_TWO, (1..=5).map(day).collect());
        change(&mut given);
        match (given.delete(day(n).id, forced), refusal) {
            (Ok(Some(expiry)), None) => assert!(expiry.whole && expiry.forced == forced, "{what}"),
            (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{what}: {error}"),
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
    let mut gone = Given::new(LAST_TWO, vec![day(1), day(2)]);
    gone.records[0].state = State::Expired;
    gone.records[0].artifacts.clear();
    assert_eq!(gone.delete(day(1).id, false), Ok(None));
}

/// A database is emptied, and the backup that shows it is deleted by hand: the one after is no smaller than that one was.
#[test]
fn an_anomaly_lasts_until_it_is_looked_at_or_over() {
    type Change = fn(&mut Given);
    let rows: [(&str, Change, bool); 8] = [
        ("all is there", |_| {}, false),
        ("all tables are gone", |g| empty(&mut g.records[3..]), true),
        ("a manifest says nothing of tables", |g| g.records[3].measure.tables = None, false),
        (
            "the first empty one is deleted",
            |g| {
                empty(&mut g.records[3..]);
                bury(&mut g.records[3]);
            },
            true,
        ),
        (
            "the first two are",
            |g| {
                empty(&mut g.records[2..]);
                g.records[2..4].iter_mut().for_each(bury);
            },
            true,
        ),
        (
            "it is deleted, and the next one is whole again",
            |g| {
                empty(&mut g.records[3..4]);
                bury(&mut g.records[3]);
            },
            false,
        ),
        (
            "the next one was whole again, and has expired since",
            |g| {
                empty(&mut g.records[1..2]);
                empty(&mut g.records[3..]);
                g.records[1..3].iter_mut().for_each(bury);
            },
            false,
        ),
        (
            "it has been looked at",
            |g| {
                empty(&mut g.records[3..]);
                bury(&mut g.records[3]);
                let looked_at = g.records[3].id;
                g.acknowledged = BTreeMap::from([((environment("production"), "shop".to_owned()), looked_at)]);
            },
            false,
        ),
    ];
    for (what, change, blocked) in rows {
        let mut given = Given::new(LAST_TWO, (1..=5).map(day).collect());
        change(&mut given);
        let plan = given.plan();
        assert_eq!(
            (plan.blocks.len(), plan.expire.is_empty()),
            (usize::from(blocked), blocked),
            "{what}: {:?}",
            plan.blocks
        );
    }
}

fn empty(records: &mut [Record]) {
    for record in records {
        record.measure = Measure { tables: Some(Vec::new()), ..Measure::default() };
    }
}

fn bury(record: &mut Record) {
    record.artifacts.clear();
    record.state = State::Expired;
}

#[test]
fn rules_for_what_does_not_exist_are_told() {
    let policy = r#"{"rules":[{"databases":["shop","shopp"],"environments":["production"],"keep_last":2},
                              {"environments":["qa"],"keep_last":2}]}"#;
    let mut catalog = Given::new(policy, vec![day(1)]).catalog();
    catalog.add_unreadable(Unreadable { key: "k".into(), problem: "p".into() });
    let given = Given::new(policy, vec![day(1)]);
    let warnings = plan(&catalog, &given.policy, &given.circumstances()).warnings;
    assert_eq!(
        warnings,
        [
            "k is kept with all that is its: p",
            "rule 1 names the database \"shopp\", of which there is no backup",
            "rule 2 names the environment qa, of which there is no backup",
        ]
    );
}

/// SplitMix64: a history is its number, so that a failure names what reproduces it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }
}

/// What all histories draw from.
struct Pool {
    environments: Vec<Environment>,
    policies: Vec<Policy>,
}

impl Pool {
    fn new() -> Self {
        let policies = [
            DEFAULT_POLICY,
            LAST_TWO,
            r#"{"rules":[{"keep_within_days":1}]}"#,
            r#"{"rules":[{"keep_daily":2,"keep_weekly":2,"keep_monthly":2,"keep_yearly":1}]}"#,
            r#"{"rules":[{"artifacts":["raw","transformed"],"keep_last":1},{"purposes":["testing"],"keep_within_days":2},{"keep_last":1}]}"#,
            r#"{"rules":[{"environments":["qa"],"keep_last":1},{"databases":["a'; DROP TABLE b; --"],"keep_weekly":1}]}"#,
        ];
        Self {
            environments: ["production", "staging", "qa"].map(environment).to_vec(),
            policies: policies.iter().map(|policy| policy.parse().unwrap()).collect(),
        }
    }

    fn history(&self, number: u64) -> Given {
        const NAMES: [&str; 4] = ["shop", "shop/../crm", "a'; DROP TABLE b; --", "\u{202e}שוק\n"];
        let mut random = Random(number);
        let epoch = 1_750_000_000 + random.below(400) as i64 * 86_400;
        // From hours to years between backups.
        let spread = random.pick(&[3_600, 86_400, 86_400 * 9, 86_400 * 100]);
        let databases = random.pick(&[1_u64, 2, 4]);
        let environments = random.pick(&[1_u64, 2, 3]);
        // The deployment's settings leave tables out, so that nothing is whole.
        let leaves_out = random.one_in(3);
        let mut second = epoch;
        let mut records = Vec::new();
        for _ in 0..random.below(11) {
            second -= random.below(spread) as i64 + 1;
            let places = (&NAMES[..databases as usize], environments as usize);
            records.push(self.record(&mut random, second, places, leaves_out));
        }
        let mut now = epoch;
        match random.below(8) {
            0 => now -= random.below(spread * 3) as i64,
            1 => now += random.below(86_400 * 4_000) as i64,
            _ => now += random.below(86_400) as i64,
        }
        let mut pins: Vec<Pin> = Vec::new();
        let now = Timestamp::from_second(now).unwrap();
        for record in &records {
            if random.one_in(10) {
                let expires = random.pick(&[None, Some(now), Some(now + SignedDuration::from_secs(1))]);
                pins.push(Pin { expires, released: random.one_in(4), ..pin(record.id) });
            }
        }
        let one_environment = random.one_in(4);
        let scope = if one_environment { self.environments[..1].to_vec() } else { Vec::new() };
        Given {
            records,
            pins,
            acknowledged: BTreeMap::new(),
            environments: scope,
            override_anomaly: random.one_in(2),
            now,
            policy: random.pick(&self.policies),
        }
    }

    fn record(
        &self,
        random: &mut Random,
        second: i64,
        (names, environments): (&[&str], usize),
        leaves_out: bool,
    ) -> Record {
        let mut record = backup(BackupId::from_timestamp(Timestamp::from_second(second).unwrap()));
        record.environment = random.pick(&self.environments[..environments]);
        record.database = random.pick(names).to_owned();
        record.purpose = random.pick(&["daily_backup", "daily_backup", "testing", "on demand?"]).to_owned();
        record.verified = !random.one_in(4);
        record.hold = random.one_in(16);
        match (leaves_out, random.below(6)) {
            (_, 0) => by_hand(&mut record),
            (true, 1) => record.whole = false,
            (true, _) => nightly(&mut record),
            (false, 1) => record.as_configured = true,
            (false, _) => {}
        }
        record.measure.rows = random.pick(&[100, 100, 100, 10]);
        let artifact = |kind: ArtifactKind| Artifact { kind, key: format!("{second}.{kind}"), size_bytes: 1 };
        match random.below(12) {
            0 => record.artifacts = vec![artifact(ArtifactKind::Raw)],
            1 => {
                record.artifacts = vec![artifact(ArtifactKind::RdsExport)];
                record.restorable = false;
            }
            2 | 3 => record.artifacts.push(artifact(ArtifactKind::Transformed)),
            4 => record.artifacts.clear(),
            5 => record.problem = Some("manifest version 2".to_owned()),
            6 => {
                record.unfinished = std::mem::take(&mut record.artifacts);
                record.state = State::Expired;
                record.forced = random.one_in(4);
            }
            7 => {
                record.artifacts.clear();
                record.state = State::Expired;
            }
            _ => {}
        }
        if random.one_in(8) {
            record.missing = record.kinds();
        }
        record
    }
}

/// What carrying a plan out leaves, in the manifests' own terms.
fn carried_out(given: &Given, plan: &Plan) -> Vec<Record> {
    let mut records = given.records.clone();
    for expiry in plan.expire.iter().chain(&plan.resume) {
        let record = records.iter_mut().find(|record| record.id == expiry.id).unwrap();
        record.artifacts.retain(|artifact| !expiry.artifacts.contains(artifact));
        record.unfinished.retain(|artifact| !expiry.artifacts.contains(artifact));
        if record.artifacts.is_empty() {
            record.state = State::Expired;
        }
    }
    records
}

/// The same, killed after some of the tombstones and before any data was deleted.
fn killed_midway(given: &Given, plan: &Plan, after: usize) -> Vec<Record> {
    let mut records = given.records.clone();
    for expiry in plan.expire.iter().take(after) {
        let record = records.iter_mut().find(|record| record.id == expiry.id).unwrap();
        record.artifacts.retain(|artifact| !expiry.artifacts.contains(artifact));
        record.unfinished.extend(expiry.artifacts.iter().cloned());
        if record.artifacts.is_empty() {
            record.state = State::Expired;
        }
    }
    records
}

impl Record {
    fn kinds(&self) -> Vec<ArtifactKind> {
        self.artifacts.iter().map(|artifact| artifact.kind).collect()
    }
}

/// The newest verified backup of each database that can be restored, told without the plan's own words.
fn newest_verified(records: &[Record]) -> BTreeMap<(&str, &str), &Record> {
    newest_verified_of(records.iter())
}

fn newest_verified_of<'a>(records: impl Iterator<Item = &'a Record>) -> BTreeMap<(&'a str, &'a str), &'a Record> {
    let mut newest: BTreeMap<(&str, &str), &Record> = BTreeMap::new();
    for record in records {
        let dump = record.artifacts.iter().any(|a| matches!(a.kind, ArtifactKind::Dump | ArtifactKind::Sql));
        if record.state == State::Complete && record.verified && record.restorable && dump && record.problem.is_none() {
            let place = newest.entry((record.environment.as_str(), &record.database)).or_insert(record);
            if record.id > place.id {
                *place = record;
            }
        }
    }
    newest
}

/// The first plan, once it has been proved right.
fn check(given: &mut Given, other_environment: &Environment, number: u64) -> Result<Plan, &'static str> {
    let require = |holds: bool, what: &'static str| if holds { Ok(()) } else { Err(what) };
    let first = given.plan();
    if number.is_multiple_of(8) {
        given.records.reverse();
        require(given.plan() == first, "the order of listing, or asking twice, changes the plan")?;
    }

    let expiring: BTreeSet<BackupId> = first.expire.iter().map(|expiry| expiry.id).collect();
    let originals = given.records.clone();
    let verified = newest_verified(&originals);
    for record in verified.values() {
        require(!expiring.contains(&record.id), "promise 2: the newest verified backup is to be deleted")?;
    }
    let found = newest_verified_of(originals.iter().filter(|r| r.missing.is_empty()));
    for record in found.values() {
        require(!expiring.contains(&record.id), "promise 2: the newest verified backup that is really there")?;
    }
    let stands_in = |r: &&Record| r.missing.is_empty() && r.id.timestamp() <= given.now;
    for complete in [|r: &&Record| r.whole, |r: &&Record| r.as_configured, |r: &&Record| !r.of_chosen_tables] {
        for record in newest_verified_of(originals.iter().filter(stands_in).filter(complete)).values() {
            require(!expiring.contains(&record.id), "promise 2: the newest verified backup of all tables")?;
        }
    }
    let behind = given.records.iter().any(|r| {
        r.state == State::Complete
            && r.id.timestamp() > given.now
            && (given.environments.is_empty() || given.environments.contains(&r.environment))
    });
    require(!behind || first.expire.is_empty(), "the clock is behind the newest backup, and something expires")?;
    for record in &given.records {
        let pinned = given.pins.iter().any(|pin| pin.backup_id == record.id && pin.is_active(given.now));
        let untouchable = record.hold
            || pinned
            || record.problem.is_some()
            || record.state == State::Expired
            || record.id.timestamp() > given.now
            || !given.environments.is_empty() && !given.environments.contains(&record.environment);
        require(!(untouchable && expiring.contains(&record.id)), "what must not be touched expires")?;
        let touched = expiring.contains(&record.id) && record.is_restorable();
        let has_verified = verified.contains_key(&(record.environment.as_str(), record.database.as_str()));
        require(!touched || has_verified, "something expires where nothing is verified")?;
    }
    for resumed in &first.resume {
        let pinned = given.pins.iter().any(|pin| pin.backup_id == resumed.id && pin.is_active(given.now));
        require(!pinned, "a pinned backup's deletion goes on")?;
        let held = originals.iter().any(|record| record.id == resumed.id && record.hold);
        require(!held, "a held backup's deletion goes on")?;
        let restorable = |a: &Artifact| matches!(a.kind, ArtifactKind::Dump | ArtifactKind::Sql);
        let unforced = originals.iter().find(|record| record.id == resumed.id && !record.forced && record.restorable);
        let may_be_last = unforced.is_some_and(|record| record.unfinished.iter().any(restorable));
        let stays = verified.contains_key(&(resumed.environment.as_str(), resumed.database.as_str()));
        require(!may_be_last || stays, "the last data of a database is deleted")?;
    }

    if first.expire.is_empty() && first.resume.is_empty() {
        return Ok(first);
    }
    if given.environments.is_empty() && !behind && given.records.iter().any(|r| &r.environment == other_environment) {
        let without = Given {
            records: given.records.iter().filter(|r| &r.environment != other_environment).cloned().collect(),
            pins: given.pins.clone(),
            acknowledged: BTreeMap::new(),
            environments: Vec::new(),
            policy: given.policy.clone(),
            ..*given
        };
        let ids = |plan: &Plan| -> Vec<BackupId> {
            let of_rest = plan.expire.iter().filter(|expiry| &expiry.environment != other_environment);
            of_rest.map(|expiry| expiry.id).collect()
        };
        require(ids(&first) == ids(&without.plan()), "an environment evicts another's")?;
    }

    let after = carried_out(given, &first);
    let intact = |records: &[Record]| {
        let now_newest = newest_verified(records);
        verified.iter().all(|(place, record)| now_newest.get(place).is_some_and(|r| r.artifacts == record.artifacts))
    };
    require(intact(&after), "promise 2: the newest verified backup is not what it was")?;
    let killed = killed_midway(given, &first, first.expire.len().div_ceil(2));
    given.records = killed;
    let resumed = given.plan();
    let resumed_after = carried_out(given, &resumed);
    require(intact(&resumed_after), "promise 2 after a kill")?;
    given.records = resumed_after;
    let third = given.plan();
    require(third.expire.is_empty() && third.resume.is_empty(), "after a kill and a second run, a third finds work")?;
    let left = |records: &[Record]| -> BTreeSet<(BackupId, ArtifactKind)> {
        records.iter().flat_map(|r| r.artifacts.iter().map(|a| (r.id, a.kind))).collect()
    };
    require(left(&given.records) == left(&after), "a killed run and its successor do not end where one run would")?;
    given.records = after;
    let second = given.plan();
    require(second.expire.is_empty() && second.resume.is_empty(), "a second run finds something to do")?;
    Ok(first)
}

/// `HOLDFAST_HISTORIES` says how many; the numbers of those that fail are told.
#[test]
fn the_promises_hold_over_random_histories() {
    let count: u64 = std::env::var("HOLDFAST_HISTORIES").ok().map_or(100_000, |text| text.parse().unwrap());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let (expiring, blocked): (u64, u64) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let pool = Pool::new();
                    let (mut expiring, mut blocked) = (0, 0);
                    for number in (thread..count).step_by(threads as usize) {
                        let mut given = pool.history(number);
                        match check(&mut given, &pool.environments[1], number) {
                            Ok(plan) => {
                                expiring += u64::from(!plan.expire.is_empty());
                                blocked += u64::from(!plan.blocks.is_empty());
                            }
                            Err(what) => panic!("history {number}: {what}"),
                        }
                    }
                    (expiring, blocked)
                })
            })
            .collect();
        let counts = workers.into_iter().map(|worker| worker.join().unwrap());
        counts.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    });
    // A generator that never gets to the interesting cases proves nothing.
    assert!(expiring > count / 6 && blocked > count / 6, "{expiring} expire, {blocked} are blocked, of {count}");
}
