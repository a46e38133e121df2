//! The captured steps of one model: one graph for each combination of padded sizes.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::Hash;

use super::graph::Graph;

/// Graphs by what determines their launches; at most a fixed number.
pub struct GraphCache<K> {
    graphs: HashMap<K, Graph>,
    graphs_max: usize,
}

impl<K: Eq + Hash + Copy> GraphCache<K> {
    /// Room for `graphs_max` graphs.
    pub fn new(graphs_max: usize) -> GraphCache<K> {
        GraphCache { graphs: HashMap::new(), graphs_max }
    }

    /// The graph of a key, if it was captured.
    pub fn get(&self, key: K) -> Option<&Graph> {
        self.graphs.get(&key)
    }

    /// Whether one more may be captured.
    pub fn has_room(&self) -> bool {
        self.graphs.len() < self.graphs_max
    }

    /// Keeps a graph.
    pub fn insert(&mut self, key: K, graph: Graph) {
        self.graphs.insert(key, graph);
    }

    /// Drops all graphs: addresses that they captured are no longer good.
    pub fn clear(&mut self) {
        self.graphs.clear();
    }

    /// Graphs captured.
    pub fn len(&self) -> usize {
        self.graphs.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.graphs.is_empty()
    }
}
