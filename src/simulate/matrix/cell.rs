//! What a cell is, and how it is drawn.

use serde::Serialize;

use crate::protocol::{DrafterNeeds, Micros, Slo};
use crate::random::{Draw, SplitMix64};
use crate::scheduler::SchedulerLimits;
use crate::simulate::virtual_executor::{Confidence, TimeError};
use crate::simulate::{DraftQuality, Settings, SimulatedClass};

/// Random stream of the cells.
const CELL_STREAM: u32 = 0x61;
/// Longest prompt and output together, in tokens.
const CONTEXT_TOKENS_MAX: u32 = 16_384;
/// KV blocks of each model.
const KV_BLOCKS: u32 = 30_000;
/// Share of the cells with a TPOT objective.
const TPOT_SHARE: f64 = 0.9;
/// Share of the cells with a second class, and of their requests in it.
const BATCH_CELLS_SHARE: f64 = 0.25;
const BATCH_SHARE: f64 = 0.5;

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ArrivalProcess {
    /// Independent exponential gaps.
    Poisson,
    /// Independent gamma gaps with a coefficient of variation of about 2.2.
    Gamma,
    /// A Poisson process that alternates between a high and a low rate.
    OnOff,
}

impl ArrivalProcess {
    /// As in the report.
    pub fn name(self) -> &'static str {
        match self {
            ArrivalProcess::Poisson => "poisson",
            ArrivalProcess::Gamma => "gamma",
            ArrivalProcess::OnOff => "on_off",
        }
    }
}

/// How well the draft model knows how good it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DraftConfidence {
    /// [`Confidence::Calibrated`].
    Calibrated,
    /// [`Confidence::Noisy`] with a standard deviation of 1.
    Noisy,
    /// Right 80 % as often as it says.
    Overconfident,
}

impl DraftConfidence {
    /// As in the report.
    pub fn name(self) -> &'static str {
        match self {
            DraftConfidence::Calibrated => "calibrated",
            DraftConfidence::Noisy => "noisy",
            DraftConfidence::Overconfident => "overconfident",
        }
    }

    fn model(self) -> Confidence {
        match self {
            DraftConfidence::Calibrated => Confidence::Calibrated,
            DraftConfidence::Noisy => Confidence::Noisy { logit_sd: 1.0 },
            DraftConfidence::Overconfident => Confidence::Curve(vec![(0.0, 0.0), (1.0, 0.8)]),
        }
    }
}

/// A random situation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// Its index under the seed of the matrix.
    pub index: u64,
    /// Seed of everything that is drawn within it.
    #[serde(skip)]
    pub seed: u64,
    /// Index of its machine.
    pub machine: usize,
    /// How requests arrive.
    pub arrivals: ArrivalProcess,
    /// Multiple of the rate at which plain decoding saturates.
    pub load: f64,
    /// Median prompt, in tokens.
    pub prompt_tokens: u32,
    /// Median output, in tokens.
    pub output_tokens: u32,
    /// Standard deviation of the logarithm of both lengths.
    pub length_log_sd: f64,
    /// The TPOT objective, as a multiple of a plain step of a request that is alone.
    pub tpot_factor: Option<f64>,
    /// The TTFT objective, in ms.
    pub ttft_ms: Option<u64>,
    /// Most running requests.
    pub running_requests_max: u32,
    /// Most prefill tokens of a step.
    pub prefill_chunk_tokens_max: u32,
    /// Median acceptance of a draft token.
    pub acceptance: f64,
    /// What the draft says of itself.
    pub confidence: DraftConfidence,
    /// Standard deviation of the logarithm of each call's time.
    pub jitter: f64,
    /// The machine's times over those of its profile.
    pub time_error: f64,
    /// Whether half the requests belong to a second, less urgent class without objectives.
    pub batch_class: bool,
}

/// Cell `index` under `seed`, on one of `machines` machines.
pub fn draw(seed: u64, index: u64, machines: usize) -> Cell {
    let dice = Dice { seed, index };
    Cell {
        index,
        seed: dice.seed_of_cell(),
        machine: dice.below(Quantity::Machine, machines),
        arrivals: dice.pick(
            Quantity::Arrivals,
            [ArrivalProcess::Poisson, ArrivalProcess::Poisson, ArrivalProcess::Gamma, ArrivalProcess::OnOff],
        ),
        load: dice.load(),
        prompt_tokens: dice.log_within(Quantity::Prompt, 40.0, 2500.0),
        output_tokens: dice.log_within(Quantity::Output, 25.0, 400.0),
        length_log_sd: dice.within(Quantity::LengthSpread, 0.3, 1.0),
        tpot_factor: dice.tpot_factor(),
        ttft_ms: dice.pick(Quantity::Ttft, [Some(250), Some(500), Some(1000), Some(1000), Some(3000), None]),
        running_requests_max: dice.pick(Quantity::Running, [32, 64, 128, 256]),
        prefill_chunk_tokens_max: dice.pick(Quantity::PrefillChunk, [256, 512, 1024, 2048]),
        acceptance: dice.within(Quantity::Acceptance, 0.4, 0.9),
        confidence: dice.pick(
            Quantity::Confidence,
            [
                DraftConfidence::Calibrated,
                DraftConfidence::Calibrated,
                DraftConfidence::Noisy,
                DraftConfidence::Overconfident,
            ],
        ),
        jitter: dice.pick(Quantity::Jitter, [0.0, 0.05, 0.1]),
        time_error: dice.pick(Quantity::TimeError, [1.0, 1.0, 0.85, 1.2]),
        batch_class: dice.uniform(Quantity::BatchClass) < BATCH_CELLS_SHARE,
    }
}

impl Cell {
    /// Its objectives where a request that is alone takes `lone_step` for a plain step.
    pub(super) fn slo(&self, lone_step: Micros) -> Slo {
        let tpot = |factor: f64| Micros::from_secs_f64(lone_step.as_secs_f64() * factor);
        Slo { ttft: self.ttft_ms.map(Micros::from_millis), tpot: self.tpot_factor.map(tpot) }
    }

    /// The settings of its runs; what the cell does not draw is `machine`'s.
    pub(super) fn settings(&self, machine: &Settings, slo: Slo) -> Settings {
        Settings {
            error: TimeError { jitter: self.jitter, ..TimeError::all(self.time_error) },
            draft: DraftQuality {
                median: Some(self.acceptance),
                confidence: self.confidence.model(),
                ..DraftQuality::typical()
            },
            limits: self.limits(&machine.limits),
            context_tokens_max: CONTEXT_TOKENS_MAX,
            classes: self.classes(slo),
            seed: self.seed,
            ..machine.clone()
        }
    }

    fn classes(&self, slo: Slo) -> Vec<SimulatedClass> {
        if !self.batch_class {
            return SimulatedClass::of_all(slo);
        }
        vec![
            SimulatedClass::new("interactive", 1.0 - BATCH_SHARE, slo),
            SimulatedClass::new("batch", BATCH_SHARE, Slo::default()),
        ]
    }

    fn limits(&self, machine: &SchedulerLimits) -> SchedulerLimits {
        let decode_tokens_max = self.running_requests_max * (1 + machine.draft_tokens_max);
        SchedulerLimits {
            running_requests_max: self.running_requests_max,
            prefill_chunk_tokens_max: self.prefill_chunk_tokens_max,
            batch_tokens_max: self.prefill_chunk_tokens_max + decode_tokens_max,
            target_blocks: KV_BLOCKS,
            drafter: machine.drafter.clone().map(|needs| match needs.kv_blocks {
                0 => needs,
                _ => DrafterNeeds { kv_blocks: KV_BLOCKS, ..needs },
            }),
            ..machine.clone()
        }
    }
}

/// What is drawn of a cell. Each has its own block of randomness, so that a new quantity
/// changes none of the others: append, do not reorder.
#[derive(Clone, Copy)]
enum Quantity {
    Machine,
    Arrivals,
    LoadRange,
    Load,
    Prompt,
    Output,
    LengthSpread,
    TpotPresent,
    Tpot,
    Ttft,
    Running,
    PrefillChunk,
    Acceptance,
    Confidence,
    Jitter,
    TimeError,
    BatchClass,
}

/// The randomness of one cell.
struct Dice {
    seed: u64,
    index: u64,
}

impl Dice {
    /// Uniform in (0, 1).
    fn uniform(&self, quantity: Quantity) -> f64 {
        Draw::new(self.seed, CELL_STREAM, self.index, quantity as u32).uniform(0)
    }

    fn within(&self, quantity: Quantity, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform(quantity)
    }

    /// Uniform in the logarithm, rounded.
    fn log_within(&self, quantity: Quantity, low: f64, high: f64) -> u32 {
        self.within(quantity, low.ln(), high.ln()).exp().round() as u32
    }

    fn below(&self, quantity: Quantity, bound: usize) -> usize {
        ((self.uniform(quantity) * bound as f64) as usize).min(bound.saturating_sub(1))
    }

    fn pick<T: Copy, const N: usize>(&self, quantity: Quantity, choices: [T; N]) -> T {
        choices[self.below(quantity, N)]
    }

    /// As often below saturation as around it and beyond.
    fn load(&self) -> f64 {
        let (low, high) = self.pick(Quantity::LoadRange, [(0.5, 0.95), (0.9, 1.2), (1.1, 1.6)]);
        self.within(Quantity::Load, low, high)
    }

    fn tpot_factor(&self) -> Option<f64> {
        let present = self.uniform(Quantity::TpotPresent) < TPOT_SHARE;
        present.then(|| self.pick(Quantity::Tpot, [1.15, 1.5, 2.0, 3.0, 5.0]))
    }

    /// Unrelated to that of other cells, and of the same cell under other seeds.
    fn seed_of_cell(&self) -> u64 {
        let seed = SplitMix64::new(self.seed).next_u64();
        SplitMix64::new(seed ^ self.index).next_u64()
    }
}
