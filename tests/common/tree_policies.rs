//! Policies of trees that know nothing, for tests of what carries trees out.

use specserve::policy::{Learner, Policy, Scratch, Static};
use specserve::protocol::{DraftSet, DraftShape, DraftedRow, OpenDraft, Step, StepDecision, StepView};

/// Drafts trees by whim: which drafts are fed and which are verified depends on the time alone.
#[derive(Debug)]
pub struct Bushy {
    drafts: u32,
    salt: u64,
}

impl Bushy {
    /// With up to so many drafts of a row.
    pub fn of(drafts: u32) -> Box<dyn Learner> {
        Box::new(Static::new(Bushy { drafts, salt: 0x5EED }))
    }

    /// Whether something happens that happens `share` times in eight.
    fn rolls(&self, step: Step<'_>, row: u32, draft: u32, share: u64) -> bool {
        let key = step.view.now.0 ^ self.salt ^ u64::from(row) << 20 ^ u64::from(draft) << 8;
        key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 61 < share
    }
}

impl Policy for Bushy {
    fn name(&self) -> String {
        "bushy".to_owned()
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        StepDecision {
            drafts: view.decoding.iter().map(|row| self.drafts.min(row.drafts_max)).collect(),
            prefill_tokens: view.prefill_tokens_max,
            shape: DraftShape::Tree,
            ..StepDecision::default()
        }
    }

    fn expand(
        &self,
        step: Step<'_>,
        rows: &[DraftedRow],
        open: &[OpenDraft],
        _: &mut Scratch,
        keep: &mut Vec<u32>,
    ) {
        let fed = |draft: &OpenDraft| self.rolls(step, rows[draft.row as usize].decoding, draft.draft, 6);
        keep.extend((0..).zip(open).filter(|(_, draft)| fed(draft)).map(|(index, _)| index));
    }

    fn choose(&self, step: Step<'_>, rows: &[DraftedRow], _: &mut Scratch, chosen: &mut Vec<DraftSet>) {
        for row in rows {
            let mut set = DraftSet::default();
            let drafts = 0..row.proposals.len() as u32;
            drafts.filter(|&draft| self.rolls(step, row.decoding, draft + 64, 7)).for_each(|draft| {
                set.insert(draft as usize);
            });
            chosen.push(set);
        }
    }
}

/// Drafts choices and runner-ups, feeds all of them, and verifies all that it may.
#[derive(Debug)]
pub struct Full {
    drafts: u32,
}

impl Full {
    /// With up to so many drafts of a row.
    pub fn of(drafts: u32) -> Box<dyn Learner> {
        Box::new(Static::new(Full { drafts }))
    }
}

impl Policy for Full {
    fn name(&self) -> String {
        "full".to_owned()
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        StepDecision {
            drafts: view.decoding.iter().map(|row| self.drafts.min(row.drafts_max)).collect(),
            prefill_tokens: view.prefill_tokens_max,
            shape: DraftShape::Tree,
            ..StepDecision::default()
        }
    }

    fn choose(&self, _: Step<'_>, rows: &[DraftedRow], _: &mut Scratch, chosen: &mut Vec<DraftSet>) {
        chosen.extend(rows.iter().map(|_| DraftSet::first(DraftSet::DRAFTS_MAX)));
    }
}
