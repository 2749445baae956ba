//! What an export of a folder would be, before it is made.

use crate::export::steps::{Step, Steps};
use crate::progress::Progress;
use rustix::fs::statvfs;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use vdrecover_formats::{Kind, NodeId, Tree};

/// Files up to this length are counted as full: looking at their maps costs more than it tells.
const SMALL: u64 = 1 << 20;
/// Steps of one file that are counted.
const COUNTED: usize = 1 << 20;

/// Numbers of an export that is still to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Files, each once however many names it has.
    pub files: u64,
    /// Folders, the one asked for included.
    pub folders: u64,
    /// Symbolic links, device mappings, devices, pipes and sockets.
    pub others: u64,
    /// Nodes that can't be looked at.
    pub failed: u64,
    /// Bytes that the files seem to have.
    pub bytes: u64,
    /// Bytes of them that are data: what will be read, and the most that will be written.
    pub data: u64,
    /// Bytes free where the export goes.
    pub free: Option<u64>,
}

/// Looks at all below `node` as an export would, without reading a file.
#[must_use]
pub fn plan(tree: &dyn Tree, node: NodeId, dest: &Path, progress: &Progress) -> Plan {
    let mut plan = Plan { free: free(dest), ..Plan::default() };
    let mut seen = HashSet::from([node]);
    let mut folders = vec![node];
    progress.start("counting", 0);
    while let Some(folder) = folders.pop() {
        plan.folders += 1;
        let listed = tree.list(folder, 0, &mut |row| {
            let Ok(entry) = row else { return ControlFlow::Continue(()) };
            match tree.node(entry.id) {
                Err(_) => plan.failed += 1,
                Ok(node) if node.kind == Kind::Dir => {
                    if seen.insert(entry.id) {
                        folders.push(entry.id);
                    }
                }
                Ok(node) if node.kind == Kind::File => {
                    if node.links < 2 || seen.insert(entry.id) {
                        plan.files += 1;
                        plan.bytes = plan.bytes.saturating_add(node.len);
                        plan.data = plan.data.saturating_add(data(tree, entry.id, node.len));
                    }
                }
                Ok(_) => plan.others += 1,
            }
            if progress.stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        plan.failed += u64::from(listed.is_err());
        if progress.stopped() {
            break;
        }
    }
    plan
}

fn data(tree: &dyn Tree, id: NodeId, len: u64) -> u64 {
    if len <= SMALL {
        return len;
    }
    let Ok(layer) = tree.open(id) else { return 0 };
    let steps = Steps::new(&*layer, 0..layer.len()).take(COUNTED);
    let data = steps.filter_map(|step| match step {
        Step::Data(range) => Some(range.end - range.start),
        Step::Skip { .. } => None,
    });
    data.fold(0, u64::saturating_add)
}

/// Bytes free at the nearest folder that exists.
fn free(dest: &Path) -> Option<u64> {
    let absolute = std::path::absolute(dest).ok()?;
    let home = absolute.ancestors().find(|path| path.is_dir())?;
    let stat = statvfs(home).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
