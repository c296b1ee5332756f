"""What a problem is: instance types, their validation and file formats, generators, readers of real traces, the catalogue.

The lowest room: it imports no other. A family's types live in ``<family>.py``; units stand in the field names, and an
instance is frozen and fully validated once it exists.
"""

if __name__ != "headroom.instances":
    raise ImportError(
        f"this folder is the package headroom.instances, not {__name__!r}: install the project (make demo) and import headroom.instances"
    )
