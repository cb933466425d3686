//! Gathers what the decision depends on: passkey, target server, safety backup, and the names that would be used.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aws_sdk_lambda::primitives::Blob;
use holdfast_shared::config::RestoreConfig;
use holdfast_shared::domain::{BackupId, PutAside};
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::asked::{
    aside_name, last_previous, new_database_name, previous_name, schema_name, scratch_name, shadow_name,
};
use holdfast_shared::plan::clearance::{Facts, Passkey, Refusal, Restore, SafetyBackup, Source, TargetServer};
use holdfast_shared::postgres::catalog;
use holdfast_shared::postgres::connect::{Connector, Target};
use holdfast_shared::postgres::credentials;
use holdfast_shared::postgres::session::query_fault;
use holdfast_shared::secret::Secret;
use holdfast_shared::store::Store;
use jiff::{SignedDuration, Timestamp};
use restore_trigger::engine::{held, sweep};
use serde_json::{Value, json};

use crate::lockout::{self, Admission, Lockout};
use crate::passkey;
use crate::rds;
use crate::request::{Mode, Place, RestoreRequest, SourceChoice};
use crate::select::{self, Found};

const APPLICATION_NAME: &str = "holdfast restore";
const OBSERVATION_LIMIT: Duration = Duration::from_secs(30);

/// What looking needs.
pub struct Guard<'a> {
    pub config: &'a RestoreConfig,
    pub aws: &'a aws_config::SdkConfig,
    pub store: &'a Store,
    pub request_id: &'a str,
    pub attempt: u32,
    pub give_up_at: Instant,
}

/// What was looked at.
pub struct Seen {
    pub restore: Restore,
    pub source: Source,
    pub passkey: Passkey,
    pub server: Option<TargetServer>,
    pub live_database: String,
}

impl Guard<'_> {
    /// Looks at the passkey, once it is written down that it is looked at.
    ///
    /// # Errors
    /// Where nothing can be said about it: then nothing is allowed, and it counts as no guess.
    pub async fn passkey(&self, given: Option<&Secret>) -> Result<Passkey, Fault> {
        let Some(arn) = &self.config.passkey_secret_arn else { return Ok(Passkey::NotConfigured) };
        let Some(given) = given else { return Ok(Passkey::Missing) };
        let lockout = Lockout::new(self.store, &self.config.environment, self.request_id);
        match lockout.admit().await? {
            Admission::Admitted => {}
            Admission::Locked { until } => return Ok(Passkey::LockedOut { until }),
            Admission::Busy => return Err(lockout::contended()),
        }
        match passkey::is_right(arn, given, self.aws).await {
            Ok(true) => {
                lockout.withdraw().await?;
                Ok(Passkey::Accepted)
            }
            Ok(false) => {
                lockout.fail().await?;
                Ok(Passkey::Rejected)
            }
            Err(fault) => {
                lockout.withdraw().await?;
                Err(fault)
            }
        }
    }

    /// The lock that is in force, for a plan.
    pub async fn locked_until(&self) -> Result<Option<Timestamp>, Fault> {
        Lockout::new(self.store, &self.config.environment, self.request_id).locked_until().await
    }

    /// Where the target server is and what its live database is called.
    pub async fn target(&self) -> Result<Target, Fault> {
        Ok(credentials::resolve(&self.config.database, self.aws).await?)
    }

    /// What the server says of itself. It is asked in its maintenance database: the live one may be renamed.
    /// `database` is what a restore works on, or would make.
    pub async fn observe(&self, target: &Target, database: &str) -> Result<TargetServer, Fault> {
        let maintenance = Target { database: self.config.maintenance_database.clone(), ..target.clone() };
        let connector = Connector::new(maintenance, APPLICATION_NAME)?;
        let observing = async {
            let session = connector.session().await?;
            session.refuse_pooler().await?;
            let facts = catalog::server_facts(&session.client).await.map_err(query_fault)?;
            let sql =
                "SELECT datname::text, pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database";
            let (mut databases, mut notes) = (BTreeSet::new(), BTreeMap::new());
            for row in session.client.query(sql, &[]).await.map_err(query_fault)? {
                // What is no UTF-8 is neither a name that can be asked for nor a note of ours.
                let Ok(name) = row.try_get::<_, String>(0) else { continue };
                let comment = row.try_get::<_, Option<String>>(1).ok().flatten();
                if let Some(note) = comment.as_deref().and_then(PutAside::parse) {
                    notes.insert(name.clone(), note);
                }
                databases.insert(name);
            }
            // Of the database, as ALTER DATABASE sets it; of the live one, for those that have no setting of their own,
            // such as all that are to be made; or else of the server or this role.
            let marker = session
                .client
                .query_one(
                    "SELECT COALESCE((SELECT pg_catalog.split_part(setting, '=', 2)
                                        FROM pg_catalog.pg_db_role_setting s
                                        JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase,
                                             pg_catalog.unnest(s.setconfig) setting
                                       WHERE s.setrole = 0 AND d.datname IN ($1::text::name, $2::text::name)
                                         AND setting LIKE 'holdfast.environment=%'
                                       ORDER BY d.datname = $1::text::name DESC LIMIT 1),
                                     pg_catalog.current_setting('holdfast.environment', true))",
                    &[&database, &target.database],
                )
                .await
                .map_err(query_fault)?;
            let marker: Option<String> = marker.try_get(0).map_err(query_fault)?;
            Ok(TargetServer {
                major: facts.major(),
                version: facts.version,
                system_identifier: facts.system_identifier,
                environment: marker.filter(|marker| !marker.is_empty()),
                in_recovery: facts.in_recovery,
                databases,
                notes,
            })
        };
        tokio::time::timeout(OBSERVATION_LIMIT, observing).await.unwrap_or_else(|_| {
            let seconds = OBSERVATION_LIMIT.as_secs();
            Err(Fault::new("database-unreachable", format!("no answer from {} within {seconds} s", target.host)))
        })
    }

    /// Drops what restores have left that were killed, if this is the server that restores may write to. For who has
    /// the lease on the restore's target.
    pub async fn clear_away(&self, target: &Target, restore: &Restore, server: &mut TargetServer) -> Result<(), Fault> {
        let configured = self.config.target_system_identifier.is_some()
            && server.system_identifier == self.config.target_system_identifier;
        let environment = &self.config.environment;
        let ours = server.environment.as_deref().is_none_or(|found| found == environment.as_str());
        if !configured || !ours || server.in_recovery {
            return Ok(());
        }
        let maintenance = Target { database: self.config.maintenance_database.clone(), ..target.clone() };
        let dropped = sweep(maintenance, &held(environment, restore.target()), &restore.created()).await?;
        server.databases.retain(|name| !dropped.contains(name));
        Ok(())
    }

    /// What is to be restored.
    pub async fn source(&self, request: &RestoreRequest, live_database: &str) -> Result<Found, Fault> {
        let without_backup = |source| Found { source, store: self.store.clone(), warnings: Vec::new() };
        match &request.source {
            SourceChoice::Backup(choice) => {
                select::backup(self.store, &self.config.environment, live_database, choice).await
            }
            SourceChoice::Import(name) => select::import(self.store, name).await,
            SourceChoice::Previous => Ok(without_backup(Source::Previous)),
            SourceChoice::RdsSnapshot(_) | SourceChoice::RdsMoment(_) => {
                let source = rds::look(self.config, self.aws, request).await?;
                Ok(without_backup(Source::Rds(Box::new(source))))
            }
        }
    }

    pub async fn safety_backup(&self, restore: &Restore) -> Result<Option<SafetyBackup>, Fault> {
        if !restore.changes_existing_data() {
            return Ok(None);
        }
        let environment = &self.config.environment;
        select::safety_backup(self.store, environment, restore.target(), Timestamp::now(), self.safety_window()).await
    }

    fn safety_window(&self) -> SignedDuration {
        SignedDuration::from_secs(i64::try_from(self.config.safety_backup_window.as_secs()).unwrap_or(i64::MAX))
    }

    pub fn facts(&self, request: &RestoreRequest, seen: &Seen, safety_backup: Option<SafetyBackup>) -> Facts {
        Facts {
            restore: seen.restore.clone(),
            options: request.options,
            source: seen.source.clone(),
            passkey: seen.passkey,
            environment: self.config.environment.clone(),
            target: seen.server.clone(),
            configured_system_identifier: self.config.target_system_identifier.clone(),
            live_database: seen.live_database.clone(),
            export_function: self.config.export_function.is_some(),
            safety_backup,
            safety_window: self.safety_window(),
            accepts_left_out: request.accepts_left_out.clone(),
            now: Timestamp::now(),
        }
    }

    /// Has `scheduled-export` make a backup now. A repeated call meets the same backup.
    pub async fn take_safety_backup(&self) -> Result<BackupId, Fault> {
        let failed = |problem: String| {
            Fault::new("restore-safety-backup-failed", problem).hint("run scheduled-export and then ask again")
        };
        let Some(function) = &self.config.export_function else {
            return Err(failed("EXPORT_FUNCTION_NAME is not set, so that no backup can be taken".to_owned()));
        };
        let request = json!({
            "purpose": "safety_backup",
            "notes": format!("before restore {}", self.request_id),
            "requested_by": "restore-trigger",
            // That of an attempt that died is no backup of now.
            "idempotency_key": format!("safety:{}:{}", self.request_id, self.attempt),
        });
        // An export takes minutes, and a second call while it runs only waits for it.
        let timeouts =
            aws_sdk_lambda::config::timeout::TimeoutConfig::builder().connect_timeout(Duration::from_secs(5)).build();
        let config = aws_sdk_lambda::config::Builder::from(self.aws).timeout_config(timeouts).build();
        let client = aws_sdk_lambda::Client::from_conf(config);
        let invoke = client.invoke().function_name(function).payload(Blob::new(request.to_string()));
        let sent = tokio::time::timeout_at(self.give_up_at.into(), invoke.send()).await;
        let sent = sent.map_err(|_| failed(format!("{function} was not done in time")))?;
        let answer = sent.map_err(|error| {
            let fault = Fault::from_error("restore-safety-backup-failed", &error);
            fault.hint("the function's role needs lambda:InvokeFunction on it, and in a VPC an endpoint or NAT")
        })?;
        let payload = answer.payload.map(Blob::into_inner).unwrap_or_default();
        let payload: Value = serde_json::from_slice(&payload).unwrap_or_default();
        if answer.function_error.is_some() {
            let text = |field: &str| payload[field].as_str().unwrap_or_default().to_owned();
            return Err(failed(format!("{function} failed: {}: {}", text("errorType"), text("errorMessage"))));
        }
        let id = payload["id"].as_str().and_then(|id| id.parse().ok());
        id.ok_or_else(|| failed(format!("{function} answered without a backup id")))
    }
}

/// Every name that will be used.
///
/// `id` names what has no backup's id: an undo, or the restore of an import.
pub fn restore_of(
    request: &RestoreRequest,
    source: &Source,
    live_database: &str,
    target: Option<&TargetServer>,
    id: BackupId,
) -> Restore {
    let id = source.manifest().map_or(id, |manifest| manifest.timestamp);
    let database = || request.target_database.clone().unwrap_or_else(|| live_database.to_owned());
    let instance = || request.instance.clone().unwrap_or_default();
    match request.mode {
        Mode::NewDatabase => {
            let source = source.manifest().map_or(live_database, |manifest| &manifest.source.database);
            let derived = || new_database_name(source, id);
            Restore::NewDatabase { database: request.target_database.clone().unwrap_or_else(derived) }
        }
        Mode::Swap => Restore::Swap {
            shadow: shadow_name(&database(), id),
            previous: previous_name(&database(), id),
            database: database(),
        },
        Mode::Tables if request.into == Place::Original => {
            Restore::TablesInPlace { database: database(), tables: request.tables.clone() }
        }
        Mode::Tables => {
            Restore::TablesIntoSchema { database: database(), schema: schema_name(id), tables: request.tables.clone() }
        }
        Mode::Undo => {
            let previous = target.and_then(|target| last_previous(&database(), &target.notes));
            let id = previous.as_ref().map_or(id, |previous| previous.id);
            Restore::Undo {
                aside: aside_name(&database(), id),
                put_aside: previous.as_ref().map(|previous| previous.at),
                previous: previous.map(|previous| previous.name),
                database: database(),
            }
        }
        Mode::Verify => {
            let source = source.manifest().map_or(live_database, |manifest| &manifest.source.database);
            Restore::Verify { scratch: scratch_name(source, id) }
        }
        Mode::RdsSnapshot => {
            // The newest is named by its name from here on.
            let snapshot = match (source, &request.source) {
                (Source::Rds(found), _) if found.snapshot.is_some() => {
                    found.snapshot.as_ref().map(|snapshot| snapshot.id().to_owned())
                }
                (_, SourceChoice::RdsSnapshot(snapshot)) => snapshot.clone(),
                _ => None,
            };
            Restore::RdsSnapshot { snapshot, instance: instance() }
        }
        Mode::RdsPointInTime => {
            let moment = match &request.source {
                SourceChoice::RdsMoment(moment) => *moment,
                _ => None,
            };
            Restore::RdsPointInTime { moment, instance: instance() }
        }
    }
}

pub fn refusal_fault(refusal: &Refusal) -> Fault {
    Fault::new(refusal.code(), refusal.to_string()).hint(refusal.hint())
}

/// One fault for all refusals: the code of the first, which is the weightiest.
pub fn refused(refusals: &[Refusal]) -> Fault {
    let Some((first, others)) = refusals.split_first() else {
        return Fault::new("internal", "refused without a reason");
    };
    let mut fault = refusal_fault(first);
    for other in others {
        fault.message.push_str(&format!("; also {}: {other}", other.code()));
    }
    fault
}

#[cfg(test)]
mod tests {
    use holdfast_shared::domain::put_aside::Exchange;
    use serde_json::json;

    use super::*;
    use crate::request::understand;

    #[expect(clippy::needless_pass_by_value, reason = "a json! literal reads better without a reference")]
    fn restore(event: Value, databases: &[&str]) -> Restore {
        let (request, _) = understand(&event).unwrap();
        let note = PutAside { by: Exchange::Replaced, by_backup: None, at: Timestamp::UNIX_EPOCH, keep_until: None };
        let notes = databases.iter().map(|name| ((*name).to_owned(), note.clone())).collect();
        let target = TargetServer { notes, ..TargetServer::default() };
        restore_of(&request, &Source::Previous, "shop", Some(&target), "20250621-143000".parse().unwrap())
    }

    #[test]
    fn names_follow_from_database_and_id() {
        for (event, expected) in [
            (json!({"backup": "latest"}), vec!["shop_20250621-143000"]),
            (json!({"backup": "latest", "target_database": "copy"}), vec!["copy"]),
            (
                json!({"mode": "swap", "backup": "latest"}),
                vec!["shop", "shop_restore_20250621-143000", "shop_before_20250621-143000"],
            ),
            (json!({"mode": "tables", "backup": "latest", "tables": ["a.b"]}), vec!["shop", "restore_20250621-143000"]),
            (json!({"mode": "verify"}), vec!["shop_drill_20250621-143000"]),
            (json!({"mode": "undo"}), vec!["shop_before_20250620-020000", "shop_undone_20250620-020000"]),
        ] {
            let found = format!("{:?}", restore(event, &["shop", "shop_before_20250620-020000"]));
            for name in expected {
                assert!(found.contains(&format!("{name:?}")), "{name} in {found}");
            }
        }
        assert_eq!(restore(json!({"mode": "undo"}), &["shop"]).target(), "shop");
    }

    #[test]
    fn all_refusals_are_told_under_the_first_ones_code() {
        let fault = refused(&[Refusal::PasskeyMissing, Refusal::TargetStandby]);
        assert_eq!(fault.code, "restore-passkey-missing");
        assert!(fault.message.contains("restore-target-standby"), "{fault}");
    }
}
