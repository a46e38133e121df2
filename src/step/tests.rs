//! Steps on the shadow executor, with policies and drafters that misbehave.

use std::sync::Arc;

use super::*;
use crate::executor::{Drafter, ShadowExecutor, ShadowOptions, Target};
use crate::policy::{Fixed, Policy, Scratch};
use crate::protocol::{
    BlockId, Compaction, ConstraintState, DecodeView, DraftForest, DraftSeed, DraftedRow, ExecutorInfo,
    History, Micros, ModelRole, NodeId, Proposal, RequestId, SamplingParams, SequenceInput, Step,
    StepDecision, StepView, TokenConstraint, TokenMask, Verdict, VerifyRow,
};

struct Standstill;

impl Clock for Standstill {
    fn now(&self) -> Micros {
        Micros::ZERO
    }
}

const BLOCKS: u32 = 16;

fn input(request: u64, start: u32) -> SequenceInput {
    SequenceInput {
        request: RequestId(request),
        tokens: vec![5],
        start,
        blocks: [0, 1].map(|block| BlockId(request as u32 * 2 + block)).to_vec(),
        sampling: Arc::new(SamplingParams::greedy()),
        history: None,
    }
}

/// Two sequences that decode with up to `limit` drafts each.
fn plan(policy: impl Policy + 'static, limit: u32) -> StepPlan {
    let requests = [0, 1];
    let decoding = requests.map(|request| DecodeView {
        request: RequestId(request),
        context_tokens: 1,
        output_tokens: 1,
        since_first_token: Micros::ZERO,
        tpot: None,
        weight: 1.0,
        draft_lag_tokens: 1,
        drafts_max: limit,
        temperature: 0.0,
    });
    StepPlan {
        number: 7,
        policy: Arc::new(policy),
        view: StepView { decoding: decoding.to_vec(), ..StepView::default() },
        granted: StepDecision { drafts: vec![limit; 2], ..StepDecision::default() },
        rows: requests.map(|request| VerifyRow::decode(input(request, 0))).to_vec(),
        seeds: requests
            .map(|request| DraftSeed { row: request as u32, input: input(request, 0), limit, mask: None })
            .to_vec(),
        started: Vec::new(),
        fault: None,
    }
}

fn shadow() -> ShadowExecutor {
    ShadowExecutor::new(ShadowOptions { agreement: 1.0, ..ShadowOptions::small(BLOCKS, BLOCKS) })
}

fn expected() -> Vec<u32> {
    shadow().expect(&[5], &SamplingParams::greedy(), 5)
}

/// Every row has the target's own tokens, and exactly as many drafts as named were accepted.
fn assert_sound(result: &StepResult, accepted: u32) {
    result.check(1000).expect("a sound result");
    for row in &result.outcome.rows {
        assert_eq!(row.verdict.accepted, accepted);
        assert_eq!(row.verdict.tokens, expected()[..=accepted as usize]);
    }
}

#[test]
fn all_drafts_of_a_perfect_drafter_are_accepted() {
    let result = run(&mut shadow(), plan(Fixed { draft_tokens: 4 }, 4), &mut Scratch::default(), &Standstill)
        .expect("runs");
    assert_sound(&result, 4);
    assert_eq!(result.fault, None);
    assert_eq!(result.report.draft_calls, [(2, 2); 4]);
    assert!(result.outcome.draft_ran && result.outcome.rows.iter().all(|row| row.drafted == 4));
}

#[test]
fn a_step_without_seeds_decodes_plainly_and_calls_no_drafter() {
    let mut plain = plan(Fixed::NONE, 0);
    plain.seeds.clear();
    let result =
        run(&mut Broken::drafter(Fault::Panics), plain, &mut Scratch::default(), &Standstill).expect("runs");
    assert_sound(&result, 0);
    assert!(result.fault.is_none() && !result.outcome.draft_ran && result.report.draft_calls.is_empty());
}

/// Where a policy panics.
#[derive(Clone, Debug)]
struct PanicsIn(&'static str);

impl Policy for PanicsIn {
    fn name(&self) -> String {
        "panics".to_owned()
    }
    fn plan(&self, view: &StepView, scratch: &mut Scratch) -> StepDecision {
        Fixed { draft_tokens: 4 }.plan(view, scratch)
    }
    fn extend(&self, _: Step<'_>, rows: &[DraftedRow], active: &[u32], _: &mut Scratch, keep: &mut Vec<u32>) {
        assert!(self.0 != "extend" || rows[0].proposals.len() < 2, "a bug in extend");
        keep.extend_from_slice(active);
    }
    fn select(&self, _: Step<'_>, rows: &[DraftedRow], _: &mut Scratch, lengths: &mut Vec<u32>) {
        lengths.push(1);
        assert!(self.0 != "select", "a bug in select");
        lengths.extend(rows[1..].iter().map(|_| 1));
    }
}

#[test]
fn a_policy_that_panics_in_extend_keeps_what_was_drafted() {
    let result =
        run(&mut shadow(), plan(PanicsIn("extend"), 4), &mut Scratch::default(), &Standstill).expect("runs");
    assert_sound(&result, 1);
    assert!(result.outcome.draft_ran && result.outcome.rows.iter().all(|row| row.drafted == 2));
    let fault = result.fault.expect("a fault").to_string();
    assert_eq!(fault, "the policy panicked in `extend`: a bug in extend");
}

#[test]
fn a_policy_that_panics_in_select_has_nothing_verified() {
    let result =
        run(&mut shadow(), plan(PanicsIn("select"), 4), &mut Scratch::default(), &Standstill).expect("runs");
    assert_sound(&result, 0);
    assert!(result.outcome.rows.iter().all(|row| row.drafted == 4 && row.verified == 0));
    assert!(result.fault.expect("a fault").to_string().contains("select"));
}

/// What a drafter does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Fails,
    Panics,
    FailsToExtend,
    NoToken,
    NoProbability,
    Unasked,
    TooMany,
}

/// A shadow with a broken drafter, which also counts what it is told was accepted.
struct Broken {
    shadow: ShadowExecutor,
    fault: Option<Fault>,
    settled: Vec<NodeId>,
}

impl Broken {
    fn drafter(fault: Fault) -> Broken {
        Broken { shadow: shadow(), fault: Some(fault), settled: Vec::new() }
    }
}

impl Executor for Broken {
    fn info(&self) -> &ExecutorInfo {
        self.shadow.info()
    }
    fn target(&mut self) -> &mut dyn Target {
        self
    }
    fn drafter(&mut self) -> Option<&mut dyn Drafter> {
        Some(self)
    }
    fn logits(&mut self, model: ModelRole, input: &SequenceInput) -> Result<Vec<f32>, ExecutorError> {
        self.shadow.logits(model, input)
    }
}

impl Target for Broken {
    fn verify(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError> {
        self.shadow.verify(rows, out)
    }
    fn compact(&mut self, moves: &[Compaction]) -> Result<(), ExecutorError> {
        self.shadow.compact(moves)
    }
}

impl Drafter for Broken {
    fn start(&mut self, seeds: &[DraftSeed], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        let good = Proposal { token: 1, probability: 0.5, finite: true, ..Proposal::default() };
        match self.fault {
            Some(Fault::Fails) => return Err(ExecutorError::Device("out of memory".to_owned())),
            Some(Fault::Panics) => panic!("a bug in the drafter"),
            Some(Fault::NoToken) => _ = forest.add_root(0, Proposal { token: 1000, ..good }),
            Some(Fault::NoProbability) => {
                forest.add_root(0, Proposal { probability: f32::NAN, ..good });
            }
            Some(Fault::Unasked) => _ = forest.add_root(2, good),
            Some(Fault::TooMany) => {
                let mut node = forest.add_root(0, good);
                for _ in 0..9 {
                    node = forest.add_child(node, good);
                }
            }
            None | Some(Fault::FailsToExtend) => return self.shadow.start(seeds, forest),
        }
        Ok(())
    }
    fn extend(&mut self, nodes: &[NodeId], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        match self.fault {
            Some(Fault::FailsToExtend) => Err(ExecutorError::Device("out of memory".to_owned())),
            _ => self.shadow.extend(nodes, forest),
        }
    }
    fn settle(&mut self, accepted: &[NodeId], _: &DraftForest) -> Result<(), ExecutorError> {
        self.settled = accepted.to_vec();
        Ok(())
    }
}

#[test]
fn a_drafter_that_fails_in_any_way_costs_the_step_its_drafts_and_nothing_else() {
    for (fault, what) in [
        (Fault::Fails, "out of memory"),
        (Fault::Panics, "it panicked: a bug in the drafter"),
        (Fault::FailsToExtend, "out of memory"),
        (Fault::NoToken, "token 1000 of a vocabulary of 1000"),
        (Fault::NoProbability, "a probability of NaN"),
        (Fault::Unasked, "seed 2, which asked for none"),
    ] {
        let result = run(
            &mut Broken::drafter(fault),
            plan(Fixed { draft_tokens: 4 }, 4),
            &mut Scratch::default(),
            &Standstill,
        );
        let result = result.expect("the target is well");
        assert_sound(&result, 0);
        assert!(!result.outcome.draft_ran, "its cache can't be relied on");
        let text = result.fault.expect("a fault").to_string();
        assert!(text.contains(what), "{text}");
    }
}

#[test]
fn proposals_beyond_the_limit_are_ignored() {
    let drafted = draft(
        &mut Broken::drafter(Fault::TooMany),
        plan(Fixed { draft_tokens: 4 }, 4),
        &mut Scratch::default(),
        &Standstill,
    );
    assert_eq!(drafted.fault, None);
    assert_eq!(drafted.rows.iter().map(|row| row.proposals.len()).collect::<Vec<_>>(), [4]);
}

/// Any token but this one.
#[derive(Debug)]
struct Not(u32);

impl TokenConstraint for Not {
    fn state(&self, _: &[u32]) -> Box<dyn ConstraintState> {
        Box::new(Not(self.0))
    }
}

impl ConstraintState for Not {
    fn mask(&mut self) -> Option<Arc<TokenMask>> {
        Some(Arc::new(TokenMask::from_fn(1000, |token| token != self.0)))
    }

    fn advance(&mut self, _: u32) {}

    fn fork(&self) -> Box<dyn ConstraintState> {
        Box::new(Not(self.0))
    }
}

#[test]
fn a_forbidden_proposal_ends_its_row() {
    let drafted = |forbidden| {
        let mut plan = plan(Fixed { draft_tokens: 4 }, 4);
        for seed in &mut plan.seeds {
            let constraint: Option<Arc<dyn TokenConstraint>> = Some(Arc::new(Not(forbidden)));
            seed.input.sampling = Arc::new(SamplingParams { constraint, ..SamplingParams::greedy() });
            seed.input.history = Some(History { tokens: vec![5], prompt_tokens: 1 });
        }
        let drafted = draft(&mut shadow(), plan, &mut Scratch::default(), &Standstill);
        assert_eq!(drafted.fault, None);
        drafted
    };
    // the shadow drafts its target's tokens and heeds no mask
    let ended = drafted(expected()[2]);
    for row in &ended.rows {
        assert_eq!(row.proposals.iter().map(|p| p.token).collect::<Vec<_>>(), expected()[..2]);
    }
    assert_eq!(ended.rows.len(), 2);
    assert!(ended.plan.seeds.iter().all(|seed| seed.mask.is_some()));
    // only nodes that were extended have masks: the first two of each row
    let masked = ended.forest.since(0).filter(|(id, _)| ended.forest.mask(*id).is_some()).count();
    assert_eq!(masked, 4);
    assert!(drafted(expected()[0]).rows.is_empty());
    let unused = (0..1000).find(|token| !expected().contains(token)).expect("five of a thousand");
    assert!(drafted(unused).rows.iter().all(|row| row.proposals.len() == 4));
}

/// These tokens, one after the other, of which the first `known` are known to be forced.
#[derive(Clone, Debug)]
struct Exactly {
    tokens: Vec<u32>,
    known: usize,
}

impl TokenConstraint for Exactly {
    fn state(&self, _: &[u32]) -> Box<dyn ConstraintState> {
        Box::new(self.clone())
    }
}

impl ConstraintState for Exactly {
    fn mask(&mut self) -> Option<Arc<TokenMask>> {
        let next = self.tokens.first().copied();
        Some(Arc::new(TokenMask::from_fn(1000, |token| Some(token) == next)))
    }

    fn advance(&mut self, token: u32) {
        assert_eq!(self.tokens.remove(0), token);
    }

    fn fork(&self) -> Box<dyn ConstraintState> {
        Box::new(self.clone())
    }

    fn forced(&mut self) -> Vec<u32> {
        self.tokens[..self.known].to_vec()
    }
}

#[test]
fn what_is_forced_as_far_as_a_row_may_draft_is_drafted_without_the_drafter() {
    for (known, calls) in [(5, 1), (4, 1), (3, 4)] {
        let mut plan = plan(Fixed { draft_tokens: 4 }, 4);
        for (seed, row) in plan.seeds.iter_mut().zip(&mut plan.rows) {
            let constraint: Arc<dyn TokenConstraint> = Arc::new(Exactly { tokens: expected(), known });
            let sampling = SamplingParams { constraint: Some(constraint), ..SamplingParams::greedy() };
            for input in [&mut seed.input, &mut row.input] {
                input.sampling = Arc::new(sampling.clone());
                input.history = Some(History { tokens: vec![5], prompt_tokens: 1 });
            }
        }
        let result = run(&mut shadow(), plan, &mut Scratch::default(), &Standstill).expect("runs");
        assert_eq!(result.fault, None);
        assert_sound(&result, 4);
        assert!(result.outcome.draft_ran, "the drafter's cache is filled");
        assert_eq!(result.report.draft_calls.len(), calls, "{known} known");
    }
}

#[test]
fn a_free_step_has_no_masks() {
    let drafted =
        draft(&mut shadow(), plan(Fixed { draft_tokens: 4 }, 4), &mut Scratch::default(), &Standstill);
    assert!(drafted.plan.seeds.iter().all(|seed| seed.mask.is_none()));
    assert!(drafted.forest.since(0).all(|(id, _)| drafted.forest.mask(id).is_none()));
}

#[test]
fn the_drafter_is_told_which_of_its_proposals_were_accepted() {
    let mut executor = Broken { shadow: shadow(), fault: None, settled: Vec::new() };
    let result =
        run(&mut executor, plan(PanicsIn("nowhere"), 3), &mut Scratch::default(), &Standstill).expect("runs");
    assert_sound(&result, 1);
    // one of three drafts of each row was verified: the first of each, made by the first call
    assert_eq!(executor.settled, [NodeId(0), NodeId(1)]);
}

#[test]
fn a_result_that_breaks_the_executors_contract_is_refused() {
    let good = || {
        run(&mut shadow(), plan(Fixed { draft_tokens: 2 }, 2), &mut Scratch::default(), &Standstill)
            .expect("runs")
    };
    assert_eq!(good().check(1000), Ok(()));
    let refused = |break_it: fn(&mut StepResult)| {
        let mut result = good();
        break_it(&mut result);
        match result.check(1000) {
            Err(ExecutorError::Device(what)) => what,
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(|result| _ = result.outcome.rows.pop()).contains("1 verdicts came back for 2 rows"));
    assert!(
        refused(|result| result.outcome.rows[0].verdict.accepted = 3).contains("3 accepted of 2 verified")
    );
    assert!(refused(|result| result.outcome.rows[1].verified = 3).contains("3 verified of 2 drafted"));
    assert!(refused(|result| _ = result.outcome.rows[0].verdict.tokens.pop()).contains("with 2 tokens"));
    assert!(refused(|result| result.outcome.rows[1].verdict.tokens[0] = 1000).contains("token 1000"));
}

#[test]
fn acceptance_is_counted_by_position_and_what_the_target_never_saw_is_not() {
    let mut stats = AcceptanceStats::default();
    assert_eq!(stats.calibration_error(), None);
    let proposal = |probability| Proposal { probability, finite: true, ..Proposal::default() };
    let row = DraftedRow::chain(0, vec![proposal(0.9), proposal(0.6), proposal(0.2)]);
    // three verified, the first accepted: the second was rejected, the third says nothing
    let view = crate::protocol::DecodeView::example();
    let report = crate::protocol::StepReport {
        view: crate::protocol::StepView { decoding: vec![view], ..Default::default() },
        drafted: vec![row],
        counts: vec![crate::protocol::DraftCounts { verified: 3, accepted: 1 }],
        ..Default::default()
    };
    stats.record(&report);
    let shares = stats.positions.map(|share| (share.verified, share.accepted));
    assert_eq!(shares[..3], [(1, 1), (1, 0), (0, 0)]);
    // |0.9 − 1| and |0.6 − 0|, one draft each
    let error = stats.calibration_error().expect("two drafts");
    assert!((error - 0.35).abs() < 1e-6, "{error}");
    assert_eq!(stats.steps, 1);
}
