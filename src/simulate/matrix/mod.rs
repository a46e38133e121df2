//! A matrix of random situations, to find those in which a policy does worse than a rival.
//!
//! Each situation is a [`Cell`]: a pure function of a seed and an index that says how requests
//! arrive, how long they are, what they are promised, how good the draft is and how the machine
//! differs from its profile. In each cell every policy serves the same requests.

mod cell;
mod contest;
mod summary;
mod workload;

#[cfg(test)]
mod tests;

pub use cell::{ArrivalProcess, Cell, DraftConfidence, draw};
pub use contest::{Played, Standing};
pub use summary::{POOR_RATIO, RivalMinimum, Summary, summarize};
pub use workload::workload;

use super::parallel::in_parallel;
use super::{Contender, Settings, SimulationError};

/// What to draw, and who competes.
pub struct Matrix<'a> {
    /// Seed of all cells.
    pub seed: u64,
    /// Number of cells.
    pub cells: u64,
    /// Requests of a cell.
    pub requests: usize,
    /// At least one; each cell draws its own.
    pub machines: &'a [Machine],
}

/// A profile, and the policies that plan with it.
pub struct Machine {
    /// Name for the report.
    pub name: String,
    /// Its cost model, and everything that no cell draws.
    pub settings: Settings,
    /// The policy under test.
    pub policy: Contender,
    /// Its rivals; the same in the same order on every machine.
    pub rivals: Vec<Contender>,
}

/// A cell whose run failed.
#[derive(Debug, thiserror::Error)]
#[error("cell {cell}: {source}")]
pub struct MatrixError {
    /// Index of the cell.
    pub cell: u64,
    /// What went wrong.
    pub source: SimulationError,
}

/// Outcomes of a matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcomes {
    /// Cells that were played, by index.
    pub played: Vec<Played>,
    /// Cells without a load at which plain decoding begins to miss: the load has no unit there.
    pub skipped: Vec<Cell>,
}

impl Matrix<'_> {
    /// Plays all cells on up to `threads` threads.
    ///
    /// # Errors
    /// [`MatrixError`] of the first cell, by index, whose run failed.
    pub fn play(&self, threads: usize) -> Result<Outcomes, MatrixError> {
        let mut outcomes = Outcomes::default();
        for (index, result) in (0..).zip(in_parallel(self.cells as usize, threads, |index| self.cell(index)))
        {
            match result.map_err(|source| MatrixError { cell: index, source })? {
                Ok(played) => outcomes.played.push(played),
                Err(skipped) => outcomes.skipped.push(skipped),
            }
        }
        Ok(outcomes)
    }

    /// Plays one cell, or gives it back if it is to be skipped.
    fn cell(&self, index: usize) -> Result<Result<Played, Cell>, SimulationError> {
        let cell = draw(self.seed, index as u64, self.machines.len());
        let machine = &self.machines[cell.machine];
        Ok(contest::play(&cell, machine, self.requests)?.ok_or(cell))
    }
}
