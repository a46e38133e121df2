//! Writes tensors to sharded safetensors files, in parallel and with little memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use serde_json::{Map, Value, json};

use super::plan::{Contents, PlannedTensor};
use super::{InflateError, InflateOptions, InflateProgress, OnInflateProgress, write_file};

/// Bytes that a thread generates and writes at a time.
const PIECE_BYTES: usize = 4 << 20;
/// Alignment of the end of a safetensors header, in bytes.
const HEADER_ALIGNMENT: usize = 8;

/// Result of writing.
pub(super) struct Written {
    /// Number of files.
    pub shards: usize,
    /// Total size of the weights, in bytes.
    pub bytes: u64,
}

/// A weight file under construction.
struct Shard {
    path: PathBuf,
    file: File,
}

/// A range of rows of one tensor.
struct Piece<'a> {
    shard: usize,
    /// Offset in the file, in bytes.
    offset: u64,
    tensor: &'a PlannedTensor,
    first_row: usize,
    rows: usize,
}

/// Writes all tensors and, if there is more than one file, the index.
pub(super) fn write(
    directory: &Path,
    tensors: &[PlannedTensor],
    options: &InflateOptions,
    on_progress: OnInflateProgress,
) -> Result<Written, InflateError> {
    let groups = group(tensors, options.shard_bytes_max);
    let count = groups.len();
    let mut shards = Vec::with_capacity(count);
    let mut pieces = Vec::new();
    let mut weight_map = BTreeMap::new();
    for (index, group) in groups.iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        weight_map.extend(group.iter().map(|tensor| (tensor.name.clone(), name.clone())));
        let path = directory.join(name);
        let header = header(group);
        let file = create(&path, &header, group)
            .map_err(|source| InflateError::Io { file: path.clone(), source })?;
        add_pieces(&mut pieces, index, header.len() as u64, group);
        shards.push(Shard { path, file });
    }
    let bytes = tensors.iter().map(bytes_of).sum();
    let written = AtomicU64::new(0);
    let count_bytes = |piece: u64| {
        let bytes_total = bytes;
        on_progress(InflateProgress {
            bytes: written.fetch_add(piece, Ordering::Relaxed) + piece,
            bytes_total,
        })
    };
    write_pieces(&shards, &pieces, options.threads.max(1), &count_bytes)?;
    if count > 1 {
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": weight_map });
        let text = serde_json::to_vec_pretty(&index).unwrap_or_default();
        write_file(&directory.join("model.safetensors.index.json"), &text)?;
    }
    Ok(Written { shards: count, bytes })
}

/// Name of the tensor's number format in safetensors, and bytes of a number.
fn format_of(tensor: &PlannedTensor) -> (&'static str, usize) {
    match tensor.contents {
        Contents::Matrix(_) | Contents::Zeros(_) => ("BF16", 2),
        Contents::F32(_) => ("F32", 4),
        Contents::Integers(_) => ("I64", 8),
        Contents::Flags(_) => ("BOOL", 1),
    }
}

fn bytes_of(tensor: &PlannedTensor) -> u64 {
    tensor.numbers() * format_of(tensor).1 as u64
}

/// Assigns tensors to files in order, up to `bytes_max` each and at least one per file.
fn group(tensors: &[PlannedTensor], bytes_max: u64) -> Vec<&[PlannedTensor]> {
    let mut groups = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (index, tensor) in tensors.iter().enumerate() {
        if index > begin && bytes + bytes_of(tensor) > bytes_max {
            groups.push(&tensors[begin..index]);
            (begin, bytes) = (index, 0);
        }
        bytes += bytes_of(tensor);
    }
    groups.push(&tensors[begin..]);
    groups
}

/// Length and JSON header of a safetensors file.
fn header(tensors: &[PlannedTensor]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + bytes_of(tensor);
        let (dtype, _) = format_of(tensor);
        let entry = json!({ "dtype": dtype, "shape": tensor.shape(), "data_offsets": [offset, end] });
        entries.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    header
}

fn create(path: &Path, header: &[u8], tensors: &[PlannedTensor]) -> std::io::Result<File> {
    let file = File::create(path)?;
    file.set_len(header.len() as u64 + tensors.iter().map(bytes_of).sum::<u64>())?;
    file.write_all_at(header, 0)?;
    Ok(file)
}

fn add_pieces<'a>(pieces: &mut Vec<Piece<'a>>, shard: usize, mut offset: u64, tensors: &'a [PlannedTensor]) {
    for tensor in tensors {
        let shape = tensor.shape();
        // a vector is one row
        let (rows, columns) = if shape.len() == 2 { (shape[0], shape[1]) } else { (1, shape[0]) };
        let row_bytes = columns * format_of(tensor).1;
        let rows_each = (PIECE_BYTES / row_bytes.max(1)).clamp(1, rows.max(1));
        for first_row in (0..rows).step_by(rows_each) {
            pieces.push(Piece {
                shard,
                offset: offset + (first_row * row_bytes) as u64,
                tensor,
                first_row,
                rows: rows_each.min(rows - first_row),
            });
        }
        offset += bytes_of(tensor);
    }
}

/// Writes the pieces; `on_written` is told the bytes of each and may end it.
fn write_pieces(
    shards: &[Shard],
    pieces: &[Piece],
    threads: usize,
    on_written: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
) -> Result<(), InflateError> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffer = Vec::new();
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let done = write_piece(&shards[piece.shard], piece, &mut buffer)
                        .and_then(|bytes| going_on(on_written(bytes)));
                    if let Err(error) = done {
                        failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                        next.store(pieces.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

fn going_on(flow: ControlFlow<()>) -> Result<(), InflateError> {
    if flow.is_break() { Err(InflateError::Interrupted) } else { Ok(()) }
}

/// Writes a piece; returns its size in bytes.
fn write_piece(shard: &Shard, piece: &Piece, buffer: &mut Vec<u16>) -> Result<u64, InflateError> {
    let bytes = make(piece, buffer);
    let written = shard.file.write_all_at(bytes, piece.offset);
    written.map_err(|source| InflateError::Io { file: shard.path.clone(), source })?;
    Ok(bytes.len() as u64)
}

/// Generates the piece's bytes, little-endian.
fn make<'b>(piece: &Piece, buffer: &'b mut Vec<u16>) -> &'b [u8] {
    buffer.clear();
    match &piece.tensor.contents {
        Contents::Matrix(matrix) => {
            buffer.resize(piece.rows * matrix.columns, 0);
            for (row, out) in buffer.chunks_exact_mut(matrix.columns).enumerate() {
                matrix.fill_row(piece.first_row + row, out);
            }
        }
        Contents::F32(numbers) => {
            for number in numbers {
                let bits = number.to_bits();
                buffer.extend([bits as u16, (bits >> 16) as u16]);
            }
        }
        Contents::Zeros(len) => buffer.resize(*len, 0),
        Contents::Integers(numbers) => {
            for number in numbers {
                buffer.extend([0, 16, 32, 48].map(|shift| (number >> shift) as u16));
            }
        }
        Contents::Flags(flags) => {
            let byte = |pair: &[bool], at| u16::from(pair.get(at).is_some_and(|&flag| flag));
            buffer.extend(flags.chunks(2).map(|pair| byte(pair, 0) | byte(pair, 1) << 8));
        }
    }
    for number in buffer.iter_mut() {
        *number = number.to_le();
    }
    let bytes: &[u8] = bytemuck::cast_slice(buffer);
    match &piece.tensor.contents {
        // without the second half of the last pair, if there is none
        Contents::Flags(flags) => &bytes[..flags.len()],
        _ => bytes,
    }
}
