//! Servers: described, and made of snapshots and points in time.

use super::actions::{Fields, Refusal, no_snapshot, page, refused, required};
use super::model::{Server, State};
use super::query;
use super::xml::Xml;

/// `None` for an action that is not about servers.
pub(super) fn answer(state: &mut State, action: &str, fields: &Fields) -> Option<Result<String, Refusal>> {
    Some(match action {
        "DescribeDBInstances" => describe_servers(state, fields, false),
        "DescribeDBClusters" => describe_servers(state, fields, true),
        "RestoreDBInstanceFromDBSnapshot" => from_snapshot(state, fields, false),
        "RestoreDBClusterFromSnapshot" => from_snapshot(state, fields, true),
        "RestoreDBInstanceToPointInTime" => to_point_in_time(state, fields, false),
        "RestoreDBClusterToPointInTime" => to_point_in_time(state, fields, true),
        "CreateDBInstance" => create_instance(state, fields),
        _ => return None,
    })
}

fn names(is_cluster: bool) -> (&'static str, &'static str) {
    if is_cluster { ("DBCluster", "DBClusterIdentifier") } else { ("DBInstance", "DBInstanceIdentifier") }
}

fn no_server(is_cluster: bool, id: &str) -> Refusal {
    let code = if is_cluster { "DBClusterNotFoundFault" } else { "DBInstanceNotFound" };
    refused(404, code, format!("{} {id} not found.", names(is_cluster).0))
}

fn describe_servers(state: &mut State, fields: &Fields, is_cluster: bool) -> Result<String, Refusal> {
    let (element, id) = names(is_cluster);
    let id = fields.get(id);
    let members: Vec<Server> = state.servers.iter().filter(|server| server.cluster.is_some()).cloned().collect();
    let mut found = Vec::new();
    for server in state.servers.iter_mut().filter(|server| server.is_cluster == is_cluster) {
        if id.is_none_or(|id| server.id.eq_ignore_ascii_case(id)) {
            found.push(server.clone());
            server.creating = server.creating.saturating_sub(1);
        }
    }
    if let Some(id) = id.filter(|_| found.is_empty()) {
        return Err(no_server(is_cluster, id));
    }
    let (shown, marker) = page(&found, fields, state.page_size);
    let mut xml = Xml::default();
    xml.inside(&format!("{element}s"), |xml| {
        for server in shown {
            xml.inside(element, |xml| describe(xml, server, &members));
        }
    });
    xml.optional("Marker", marker);
    Ok(xml.finish())
}

fn describe(xml: &mut Xml, server: &Server, instances: &[Server]) {
    let (element, id) = names(server.is_cluster);
    let is_there = server.creating == 0;
    xml.text(id, &server.id)
        .text(&format!("{element}Arn"), server.arn())
        .text("Engine", &server.engine)
        .text("EngineVersion", &server.engine_version)
        .text("LatestRestorableTime", &server.latest_restorable)
        .inside("VpcSecurityGroups", |xml| {
            for group in &server.security_groups {
                xml.inside("VpcSecurityGroupMembership", |xml| {
                    xml.text("VpcSecurityGroupId", group).text("Status", "active");
                });
            }
        })
        .text("IAMDatabaseAuthenticationEnabled", server.iam_auth.to_string())
        .tags(&server.tags);
    if let Some((fewest, most)) = &server.acus {
        xml.inside("ServerlessV2ScalingConfiguration", |xml| {
            xml.text("MinCapacity", fewest).text("MaxCapacity", most);
        });
    }
    if server.is_cluster {
        xml.text("Status", server.status())
            .text("EarliestRestorableTime", &server.earliest_restorable)
            .optional("Endpoint", is_there.then_some(&server.host))
            .number("Port", server.port)
            .optional("DBSubnetGroup", server.subnet_group.as_ref())
            .optional("DBClusterParameterGroup", server.parameter_group.as_ref())
            .inside("DBClusterMembers", |xml| {
                for member in instances.iter().filter(|instance| instance.cluster.as_ref() == Some(&server.id)) {
                    xml.inside("DBClusterMember", |xml| {
                        xml.text("DBInstanceIdentifier", &member.id).text("IsClusterWriter", "true");
                    });
                }
            });
        return;
    }
    xml.text("DBInstanceStatus", server.status())
        .text("DBInstanceClass", &server.class)
        .optional("DBClusterIdentifier", server.cluster.as_ref());
    if let Some(group) = &server.parameter_group {
        xml.inside("DBParameterGroups", |xml| {
            xml.inside("DBParameterGroup", |xml| {
                xml.text("DBParameterGroupName", group);
            });
        });
    }
    if let Some(group) = &server.subnet_group {
        xml.inside("DBSubnetGroup", |xml| {
            xml.text("DBSubnetGroupName", group);
        });
    }
    if is_there {
        xml.inside("Endpoint", |xml| {
            xml.text("Address", &server.host).number("Port", server.port);
        });
    }
}

fn from_snapshot(state: &mut State, fields: &Fields, is_cluster: bool) -> Result<String, Refusal> {
    let snapshot = required(fields, if is_cluster { "SnapshotIdentifier" } else { "DBSnapshotIdentifier" })?;
    let found = state.snapshots.iter().find(|found| {
        found.is_cluster == is_cluster && (found.id.eq_ignore_ascii_case(snapshot) || found.arn() == snapshot)
    });
    let found = found.ok_or_else(|| no_snapshot(is_cluster, snapshot))?;
    if found.status() != "available" {
        let code = if is_cluster { "InvalidDBClusterSnapshotStateFault" } else { "InvalidDBSnapshotState" };
        return Err(refused(400, code, format!("The snapshot {snapshot} is not available.")));
    }
    if let Some(key) = found.kms_key_id.as_deref().filter(|key| found.encrypted && state.disabled_keys.contains(*key)) {
        return Err(refused(400, "KMSKeyNotAccessibleFault", format!("The KMS key {key} is not enabled.")));
    }
    let (engine, version) = (found.engine.clone(), found.engine_version.clone());
    make(state, fields, names(is_cluster).1, is_cluster, |server| {
        server.engine = engine;
        server.engine_version = version;
    })
}

fn to_point_in_time(state: &mut State, fields: &Fields, is_cluster: bool) -> Result<String, Refusal> {
    let (source, target, time) = if is_cluster {
        ("SourceDBClusterIdentifier", "DBClusterIdentifier", "RestoreToTime")
    } else {
        ("SourceDBInstanceIdentifier", "TargetDBInstanceIdentifier", "RestoreTime")
    };
    let source = required(fields, source)?;
    let found = state.servers.iter().find(|s| s.is_cluster == is_cluster && s.id.eq_ignore_ascii_case(source));
    let found = found.ok_or_else(|| no_server(is_cluster, source))?.clone();
    let latest = fields.get("UseLatestRestorableTime").is_some_and(|latest| latest == "true");
    match (fields.get(time), latest) {
        (None, true) => {}
        (Some(time), false) => {
            let parsed: Result<jiff::Timestamp, _> = time.parse();
            let restorable = |text: &String| text.parse::<jiff::Timestamp>();
            let (Ok(time), Ok(from), Ok(to)) =
                (parsed, restorable(&found.earliest_restorable), restorable(&found.latest_restorable))
            else {
                return Err(refused(400, "InvalidParameterValue", format!("{time} is not a time.")));
            };
            if time < from || time > to {
                let message = format!("The specified time {time} is not between {from} and {to}.");
                return Err(refused(400, "InvalidRestoreFault", message));
            }
        }
        _ => {
            let message = "Either a time or UseLatestRestorableTime has to be given.";
            return Err(refused(400, "InvalidParameterCombination", message));
        }
    }
    make(state, fields, target, is_cluster, |server| {
        server.engine = found.engine;
        server.engine_version = found.engine_version;
    })
}

fn create_instance(state: &mut State, fields: &Fields) -> Result<String, Refusal> {
    let cluster = fields.get("DBClusterIdentifier").cloned();
    if let Some(cluster) = &cluster
        && !state.servers.iter().any(|server| server.is_cluster && server.id == *cluster)
    {
        return Err(no_server(true, cluster));
    }
    let scales = state
        .servers
        .iter()
        .any(|server| server.is_cluster && Some(&server.id) == cluster.as_ref() && server.acus.is_some());
    if fields.get("DBInstanceClass").is_some_and(|class| class == "db.serverless") && !scales {
        let message = "Set the Serverless v2 scaling configuration on the parent DB cluster before creating a Serverless v2 DB instance.";
        return Err(refused(400, "InvalidParameterCombination", message));
    }
    let engine = required(fields, "Engine")?.to_owned();
    make(state, fields, "DBInstanceIdentifier", false, |server| {
        server.engine = engine;
        server.cluster = cluster;
    })
}

fn make(
    state: &mut State,
    fields: &Fields,
    id: &str,
    is_cluster: bool,
    set: impl FnOnce(&mut Server),
) -> Result<String, Refusal> {
    let id = required(fields, id)?.to_ascii_lowercase();
    if state.servers.iter().any(|server| server.is_cluster == is_cluster && server.id == id) {
        let code = if is_cluster { "DBClusterAlreadyExistsFault" } else { "DBInstanceAlreadyExists" };
        return Err(refused(400, code, format!("{} {id} already exists.", names(is_cluster).0)));
    }
    let mut server = if is_cluster { Server::cluster(&id) } else { Server::instance(&id) };
    server.subnet_group = fields.get("DBSubnetGroupName").cloned().or(server.subnet_group);
    let group = fields.get("DBParameterGroupName").or_else(|| fields.get("DBClusterParameterGroupName"));
    server.parameter_group = group.cloned();
    let acus = |limit: &str| fields.get(&format!("ServerlessV2ScalingConfiguration.{limit}Capacity")).cloned();
    server.acus = acus("Min").zip(acus("Max"));
    server.iam_auth = fields.get("EnableIAMDatabaseAuthentication").is_some_and(|on| on == "true");
    server.security_groups = query::list(fields, "VpcSecurityGroupIds", "VpcSecurityGroupId");
    server.class = fields.get("DBInstanceClass").cloned().unwrap_or(server.class);
    server.port = fields.get("Port").and_then(|port| port.parse().ok()).unwrap_or(server.port);
    server.tags = query::tags(fields);
    server.creating = state.creating;
    set(&mut server);
    let mut xml = Xml::default();
    xml.inside(names(is_cluster).0, |xml| describe(xml, &server, &[]));
    state.servers.push(server);
    Ok(xml.finish())
}
