//! What a run notices that nothing has to be done about at once.

use super::{Catalog, Circumstances, Policy, in_scope};

pub(super) fn warnings(catalog: &Catalog, policy: &Policy, circumstances: &Circumstances<'_>) -> Vec<String> {
    let mut warnings: Vec<String> = catalog
        .unreadable()
        .iter()
        .map(|unreadable| format!("{} is kept with all that is its: {}", unreadable.key, unreadable.problem))
        .collect();
    let troubled = in_scope(catalog, circumstances).filter_map(|r| r.problem.as_ref().map(|problem| (r.id, problem)));
    warnings.extend(troubled.map(|(id, problem)| format!("backup {id} is kept: {problem}")));
    for (index, rule) in policy.rules.iter().enumerate() {
        let number = index + 1;
        for database in &rule.databases {
            if !catalog.records().iter().any(|record| &record.database == database) {
                warnings.push(format!("rule {number} names the database {database:?}, of which there is no backup"));
            }
        }
        for environment in &rule.environments {
            if !catalog.records().iter().any(|record| &record.environment == environment) {
                warnings
                    .push(format!("rule {number} names the environment {environment}, of which there is no backup"));
            }
        }
    }
    warnings
}
