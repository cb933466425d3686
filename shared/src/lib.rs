//! What every Holdfast function shares: values, plans, and the engines that carry plans out.

pub mod archive;
pub mod domain;
pub mod plan;
