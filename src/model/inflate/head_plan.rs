//! All tensors of the inflated draft head, by the names of its source.

use super::super::draft_head::layer_prefix;
use super::super::safetensors_file::TensorFiles;
use super::super::{
    BlockHead, ConfidenceHead, DraftHead, Eagle3Head, Interface, LayerWeights, MarkovHead, Tensor,
};
use super::grown_head::GrownHead;
use super::matrix::{ColumnRun, Fill, RowSource};
use super::plan::{Contents, PlannedTensor, Planner, extended, numbers, seed};

/// Parameters of a head, without what it shares with its target.
pub(super) fn parameters(head: &DraftHead) -> u64 {
    let Interface { fusion, hidden_norm, embedding, final_norm, output_head, .. } = head.interface();
    let mut tensors = vec![fusion, hidden_norm, final_norm];
    tensors.extend(embedding.iter().chain(output_head));
    let layers = match head {
        DraftHead::Eagle3(head) => std::slice::from_ref(&head.layer),
        DraftHead::Block(head) => {
            tensors.extend(head.markov.iter().flat_map(|markov| [&markov.w1, &markov.w2]));
            let confidence = head.confidence.iter();
            tensors.extend(confidence.flat_map(|head| std::iter::once(&head.weight).chain(&head.bias)));
            &head.layers[..]
        }
    };
    let of_layers = layers.iter().flat_map(LayerWeights::tensors).map(|(_, tensor)| tensor);
    tensors.into_iter().chain(of_layers).map(|tensor| tensor.elements() as u64).sum()
}

/// The tensors in the order in which they are written.
pub(super) fn tensors(head: &DraftHead, to: &GrownHead, files: &TensorFiles) -> Vec<PlannedTensor> {
    let planner = HeadPlanner { to };
    let mut all = match head {
        DraftHead::Eagle3(head) => planner.eagle3(head, layer_prefix(files)),
        DraftHead::Block(head) => planner.block(head),
    };
    if let Some(map) = &head.interface().draft_to_target {
        let map = to.draft_to_target(map);
        // numbers of eight bytes first and those of one last: all are aligned
        all.insert(0, PlannedTensor::new("d2t", distances(&map)));
        all.push(PlannedTensor::new("t2d", mapped(&map, to.grown.to.vocab_size)));
    }
    seed(&mut all);
    all
}

/// From each draft token to the target's.
fn distances(map: &[usize]) -> Contents {
    Contents::Integers(map.iter().enumerate().map(|(draft, &target)| target as i64 - draft as i64).collect())
}

fn mapped(map: &[usize], tokens: usize) -> Contents {
    let mut mapped = vec![false; tokens];
    map.iter().for_each(|&token| mapped[token] = true);
    Contents::Flags(mapped)
}

struct HeadPlanner<'a> {
    to: &'a GrownHead,
}

impl HeadPlanner<'_> {
    fn eagle3(&self, head: &Eagle3Head, prefix: &str) -> Vec<PlannedTensor> {
        let planner = self.of_layers(std::slice::from_ref(&head.layer), 2);
        let mut all = self.interface(&planner, &head.interface, &format!("{prefix}.hidden_norm.weight"));
        all.extend(planner.layer(prefix, Some(&head.layer)));
        all
    }

    fn block(&self, head: &BlockHead) -> Vec<PlannedTensor> {
        let planner = self.of_layers(&head.layers, 1);
        let mut all = self.interface(&planner, &head.interface, "hidden_norm.weight");
        for index in 0..self.to.grown.to.layers {
            all.extend(planner.layer(&format!("layers.{index}"), head.layers.get(index)));
        }
        if let Some((markov, rank)) = head.markov.as_ref().zip(self.to.markov_rank) {
            all.extend(self.markov(&planner, markov, rank));
        }
        if let Some(confidence) = &head.confidence {
            all.extend(self.confidence(&planner, confidence));
        }
        all
    }

    fn of_layers(&self, layers: &[LayerWeights], attention_inputs: usize) -> Planner<'_> {
        let head_norms = layers.iter().any(|layer| layer.query_norm.is_some());
        Planner { grown: &self.to.grown, attention_inputs, head_norms }
    }

    fn interface(&self, planner: &Planner, from: &Interface, hidden_norm: &str) -> Vec<PlannedTensor> {
        let fusion = planner.fusion(&from.fusion, from.features.count);
        let mut all = vec![
            PlannedTensor::matrix("fc.weight", fusion),
            PlannedTensor::new(hidden_norm, planner.norm(Some(&from.hidden_norm))),
            PlannedTensor::new("norm.weight", planner.final_norm(&from.final_norm)),
        ];
        if let Some(embedding) = &from.embedding {
            all.push(PlannedTensor::matrix("embed_tokens.weight", planner.embedding(embedding)));
        }
        if let Some(head) = &from.output_head {
            let head = planner.output_head(head, from.draft_tokens, self.to.draft_tokens);
            all.push(PlannedTensor::matrix("lm_head.weight", head));
        }
        all
    }

    /// What is new in a token's feature is 0, so what reads it is not.
    fn markov(&self, planner: &Planner, from: &MarkovHead, rank: usize) -> [PlannedTensor; 2] {
        let tokens = |source: &Tensor, tokens, fill| {
            let rows = extended(source.shape[0], tokens, RowSource::New(Fill::Random));
            let run = ColumnRun { from: 0, to: 0, count: source.shape[1] };
            planner.matrix(Some(source), rows, rank, vec![run], fill)
        };
        let w1 = tokens(&from.w1, self.to.grown.to.vocab_size, Fill::Zero);
        let w2 = tokens(&from.w2, self.to.draft_tokens, Fill::Random);
        [
            PlannedTensor::matrix("markov_head.markov_w1.weight", w1),
            PlannedTensor::matrix("markov_head.markov_w2.weight", w2),
        ]
    }

    /// It reads the output and the Markov feature side by side, both at their front.
    fn confidence(&self, planner: &Planner, from: &ConfidenceHead) -> Vec<PlannedTensor> {
        let (hidden, to_hidden) = (self.to.grown.from.hidden_size, self.to.grown.to.hidden_size);
        let rank = if from.with_markov { self.to.markov_rank.unwrap_or(0) } else { 0 };
        let runs = vec![
            ColumnRun { from: 0, to: 0, count: hidden },
            ColumnRun { from: hidden, to: to_hidden, count: from.weight.shape[1] - hidden },
        ];
        let rows = vec![RowSource::Row(0)];
        let weight = planner.matrix(Some(&from.weight), rows, to_hidden + rank, runs, Fill::Zero);
        let mut all = vec![PlannedTensor::matrix("confidence_head.proj.weight", weight)];
        if let Some(bias) = &from.bias {
            let bias = Contents::F32(numbers(bias).map(|number| number as f32).collect());
            all.push(PlannedTensor::new("confidence_head.proj.bias", bias));
        }
        all
    }
}
