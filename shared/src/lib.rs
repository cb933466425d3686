//! What every Holdfast function shares.
