//! Disk image, volume and datastore formats as maps of where each byte is.
