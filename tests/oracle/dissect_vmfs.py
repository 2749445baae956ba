"""Lists a VMFS volume with dissect.vmfs, as JSON Lines: what the conformance test compares with.

Usage: dissect_vmfs.py HASH_LIMIT IMAGE...
Files of up to HASH_LIMIT bytes get the SHA-256 of their content.
"""

import hashlib
import json
import sys

from dissect.vmfs import LVM, VMFS


def kind(node):
    for word, test in (("dir", node.is_dir), ("symlink", node.is_symlink), ("rdm", node.is_rdm)):
        if test():
            return word
    return "file"


def describe(path, node, limit):
    meta = node.metadata
    record = {
        "path": path,
        "type": kind(node),
        "size": node.size,
        "mode": "%04o" % (node.mode & 0o7777),
        "uid": meta.uid,
        "gid": meta.gid,
        "links": meta.linkCount,
        "mtime": meta.mtime,
    }
    if record["type"] in ("file", "symlink") and node.size <= limit:
        digest = hashlib.sha256()
        stream = node.open()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
        record["sha256"] = digest.hexdigest()
    return record


def main():
    limit = int(sys.argv[1])
    lvm = LVM([open(image, "rb") for image in sys.argv[2:]])
    todo = [("", VMFS(lvm.volumes[0].open()).root)]
    while todo:
        folder, node = todo.pop()
        for entry in node.iterdir():
            if entry.name in (".", ".."):
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            child = entry.file_descriptor
            record = describe(path, child, limit)
            print(json.dumps(record))
            if record["type"] == "dir":
                todo.append((path, child))


main()
