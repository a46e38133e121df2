//! Cache of captured CUDA graphs: one for each combination of padded step sizes.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::Hash;

use super::graph::Graph;

/// Graphs keyed by everything that determines their launches. Holds a bounded number.
pub struct GraphCache<K> {
    graphs: HashMap<K, Graph>,
    graphs_max: usize,
}

impl<K: Eq + Hash + Copy> GraphCache<K> {
    /// An empty cache for up to `graphs_max` graphs.
    pub fn new(graphs_max: usize) -> GraphCache<K> {
        GraphCache { graphs: HashMap::new(), graphs_max }
    }

    /// The graph captured for a key.
    pub fn get(&self, key: K) -> Option<&Graph> {
        self.graphs.get(&key)
    }

    /// Whether the cache can take another graph.
    pub fn has_room(&self) -> bool {
        self.graphs.len() < self.graphs_max
    }

    /// Stores a graph.
    pub fn insert(&mut self, key: K, graph: Graph) {
        self.graphs.insert(key, graph);
    }

    /// Drops all graphs, after memory whose addresses they captured has moved.
    pub fn clear(&mut self) {
        self.graphs.clear();
    }

    /// Number of graphs.
    pub fn len(&self) -> usize {
        self.graphs.len()
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.graphs.is_empty()
    }
}
