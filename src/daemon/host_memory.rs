//! How much memory this process may still take.

use std::path::{Path, PathBuf};

const KIB: u64 = 1024;

/// Bytes that the system can hand out without swapping, within the limits of the control groups
/// that the process is in. `None` where the system does not say.
pub(super) fn available_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let of_groups = group_folders(Path::new("/sys/fs/cgroup"), &groups).filter_map(|at| left_in_group(&at));
    of_groups.chain(mem_available(&meminfo)).min()
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * KIB)
}

/// The folders of the process's memory groups (version 2, and the memory controller of version 1)
/// with all their parents, whose limits hold as well.
fn group_folders(root: &Path, groups: &str) -> impl Iterator<Item = PathBuf> {
    groups.lines().flat_map(move |line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let root = match parts.next() {
            Some("") => root.to_owned(),
            Some(controllers) if controllers.split(',').any(|name| name == "memory") => root.join("memory"),
            _ => return Vec::new(),
        };
        let group = parts.next().unwrap_or_default().trim_start_matches('/');
        let own = root.join(group);
        own.ancestors().take_while(|at| at.starts_with(&root)).map(Path::to_owned).collect()
    })
}

/// What a group's limit leaves. Cached files count as free: the kernel drops them first.
fn left_in_group(folder: &Path) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cached = ["inactive_file ", "active_file "]
        .iter()
        .filter_map(|key| stat.lines().find_map(|line| line.strip_prefix(key))?.parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(cached.sum())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let meminfo = "MemTotal:       24105000 kB\nMemAvailable:   22819000 kB\n";
        assert_eq!(mem_available(meminfo), Some(22_819_000 * 1024));
        assert_eq!(mem_available("MemTotal: 5 kB\n"), None);
        assert!(available_bytes().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn a_container_has_what_the_tightest_of_its_groups_leaves() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |folder: &str, files: &[(&str, &str)]| {
            let folder = root.path().join(folder);
            std::fs::create_dir_all(&folder).expect("created");
            files.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).expect("written"));
        };
        let stat = "anon 300\ninactive_file 200\nactive_file 50\n";
        write("a/b", &[("memory.max", "max\n"), ("memory.current", "700\n")]);
        write("a", &[("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", stat)]);
        let v1 = [("memory.limit_in_bytes", "5000\n"), ("memory.usage_in_bytes", "1000\n")];
        write("memory/c", &v1);
        let left =
            |groups: &str| group_folders(root.path(), groups).filter_map(|at| left_in_group(&at)).min();
        assert_eq!(left("0::/a/b\n"), Some(1000 - (700 - 250)));
        assert_eq!(left("5:cpuset:/x\n4:cpu,memory:/c\n"), Some(4000));
        assert_eq!(left("4:cpuset:/c\n"), None);
    }
}
