# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one model: how they find each other, agree, and end together.

    environment, TPU --place.find--> Place --meeting.hold--> all have come, or who has not
                                                 |
                        first, together, same <--group.running--> jax.distributed
                        (each with a timeout that names who is missing)

Nothing here needs a device, and a process that is alone passes through all of it unchanged.
"""
