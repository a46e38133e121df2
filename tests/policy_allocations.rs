//! Planning in steady state allocates nothing (but the decision that `plan` returns).
#![expect(clippy::unwrap_used, reason = "a helper that panics fails its test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use specserve::policy::planner::{Buffers, Curve, Problem, Row, solve};
use specserve::policy::specserve::{SpecServe, SpecServeOptions};
use specserve::policy::{Policy, Scratch};
use specserve::protocol::{
    DecodeView, DraftedRow, Micros, Proposal, RequestId, Step, StepDecision, StepView,
};
use specserve::timing::cost_model::{Between, CostModel, LatencyModel, LatencyTerms};

const REQUESTS: usize = 256;
const POSITIONS: usize = 8;

/// Counts this thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is forwarded unchanged to the system allocator, which upholds the contract;
// counting uses a thread-local that needs no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the second of two calls: the first may grow buffers.
fn in_steady_state(mut call: impl FnMut()) -> u64 {
    call();
    let before = ALLOCATIONS.get();
    call();
    ALLOCATIONS.get() - before
}

fn terms(first_us: f64, row_us: f64) -> LatencyTerms {
    let rows = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
    LatencyTerms {
        between: Between::Pad,
        rows: rows.to_vec(),
        micros: rows.map(|rows| first_us + row_us * f64::from(rows)).to_vec(),
        context_token_us: 0.02,
        attended_token_us: 0.001,
        prefill_row: 1.0,
        prefill_step_us: 10.0,
        prefill_attended_us: 0.0,
        round_us: 0.0,
        head: None,
    }
}

fn policy() -> SpecServe {
    let cost = CostModel {
        target: LatencyModel::new(terms(7000.0, 6.0)).unwrap(),
        draft: Some(LatencyModel::new(terms(300.0, 0.5)).unwrap()),
        host_us: 50.0,
    };
    SpecServe::new(cost, None, SpecServeOptions::default())
}

fn view() -> StepView {
    let row = |index: usize| DecodeView {
        request: RequestId(index as u64),
        context_tokens: 100 + index as u32,
        output_tokens: 10,
        since_first_token: Micros(90_000),
        tpot: index.is_multiple_of(2).then_some(Micros(14_000 + 100 * index as u64)),
        weight: 1.0,
        draft_lag_tokens: 1,
        drafts_max: POSITIONS as u32,
        temperature: 0.0,
    };
    StepView { decoding: (0..REQUESTS).map(row).collect(), ..StepView::default() }
}

#[test]
fn solving_allocates_nothing_in_steady_state() {
    let target: Vec<f64> = (0..=1024).map(|rows| 7000.0 + 6.0 * f64::from(rows)).collect();
    let draft: Vec<f64> = (0..=REQUESTS).map(|rows| 300.0 + rows as f64).collect();
    let rows = vec![Row { weight: 1.0, query_us: 0.0, positions: POSITIONS as u32, made: 0 }; REQUESTS];
    let survival: Vec<f32> =
        (0..REQUESTS * POSITIONS).map(|place| 0.8f32.powi((place / REQUESTS) as i32 + 1)).collect();
    let problem = Problem {
        rows: &rows,
        requests: REQUESTS,
        survival: &survival,
        target: Curve { table: &target, factor: 1.0, row_us: 0.0 },
        draft: Curve { table: &draft, factor: 1.0, row_us: 0.0 },
        priced_us: 100.0,
        priced_tokens: 0.0,
        rows_max: 1024,
    };
    let (mut buffers, mut lengths) = (Buffers::default(), Vec::new());
    let allocations = in_steady_state(|| {
        solve(&problem, &mut buffers, &mut lengths);
    });
    assert_eq!(allocations, 0);
}

#[test]
fn a_step_allocates_only_the_decision_it_returns() {
    let (policy, view) = (policy(), view());
    let (mut scratch, mut decision) = (Scratch::default(), StepDecision::default());
    let allocations = in_steady_state(|| decision = policy.plan(&view, &mut scratch));
    assert_eq!(allocations, 1);
    assert!(decision.drafts.iter().any(|&drafts| drafts > 0));
}

#[test]
fn extending_and_selecting_allocate_nothing() {
    let (policy, view) = (policy(), view());
    let granted = StepDecision { drafts: vec![POSITIONS as u32; REQUESTS], ..StepDecision::default() };
    let proposal = |index: usize| Proposal {
        probability: 0.3 + 0.7 * (index % 10) as f32 / 10.0,
        finite: true,
        ..Proposal::default()
    };
    let rows: Vec<DraftedRow> =
        (0..REQUESTS).map(|index| DraftedRow::chain(index as u32, vec![proposal(index); 2])).collect();
    let active: Vec<u32> = (0..REQUESTS as u32).collect();
    let step = Step { view: &view, granted: &granted };
    let (mut scratch, mut keep, mut lengths) = (Scratch::default(), Vec::new(), Vec::new());
    let allocations = in_steady_state(|| {
        keep.clear();
        lengths.clear();
        policy.extend(step, &rows, &active, &mut scratch, &mut keep);
        policy.select(step, &rows, &mut scratch, &mut lengths);
    });
    assert_eq!(allocations, 0);
    assert_eq!(lengths.len(), REQUESTS);
}
