//! Who waits: first come first served within a class, lower classes first.

use std::collections::VecDeque;

use super::sequence::Sequence;
use crate::protocol::RequestId;

/// Waiting sequences by class.
#[derive(Debug, Default)]
pub(super) struct Queue {
    classes: Vec<VecDeque<Sequence>>,
}

impl Queue {
    fn class(&mut self, class: u8) -> &mut VecDeque<Sequence> {
        let class = usize::from(class);
        if self.classes.len() <= class {
            self.classes.resize_with(class + 1, VecDeque::new);
        }
        &mut self.classes[class]
    }

    /// A new arrival goes to the end of its class.
    pub fn push(&mut self, sequence: Sequence) {
        self.class(sequence.request.class).push_back(sequence);
    }

    /// A preempted sequence goes to the front: it is older than all that wait, because
    /// the newest of the running is preempted first.
    pub fn push_front(&mut self, sequence: Sequence) {
        self.class(sequence.request.class).push_front(sequence);
    }

    /// The next to run.
    pub fn peek(&self) -> Option<&Sequence> {
        self.classes.iter().find_map(VecDeque::front)
    }

    /// Takes the next to run.
    pub fn pop(&mut self) -> Option<Sequence> {
        self.classes.iter_mut().find_map(VecDeque::pop_front)
    }

    /// One of those that wait.
    pub fn get(&self, id: RequestId) -> Option<&Sequence> {
        self.iter().find(|sequence| sequence.request.id == id)
    }

    /// Takes one out of the middle.
    pub fn remove(&mut self, id: RequestId) -> Option<Sequence> {
        self.classes.iter_mut().find_map(|class| {
            let position = class.iter().position(|sequence| sequence.request.id == id)?;
            class.remove(position)
        })
    }

    /// Takes all.
    pub fn drain(&mut self) -> Vec<Sequence> {
        self.classes.iter_mut().flat_map(std::mem::take).collect()
    }

    /// All, most urgent first.
    pub fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.classes.iter().flatten()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.classes.iter().map(VecDeque::len).sum()
    }
}
