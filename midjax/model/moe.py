# SPDX-License-Identifier: Apache-2.0
"""scratch"""


class Aux:
    pass
