variable "bucket" {
  description = "Name of the bucket for data, models and artifacts."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "Want 3 to 63 lower-case letters, digits and hyphens."
  }
}

variable "region" {
  description = "AWS region of the bucket."
  type        = string
}

variable "prefix" {
  description = "Keys of the project start with this, without slashes at its ends."
  type        = string
  default     = "emuedit"
}

variable "scratch_days" {
  description = "Days after which objects under <prefix>/scratch are removed."
  type        = number
  default     = 7
}

variable "old_version_days" {
  description = "Days for which deleted and replaced objects can be restored."
  type        = number
  default     = 30
}

variable "trainer_principals" {
  description = "ARNs that may take the role of the trainer, which reads and writes under the prefix."
  type        = list(string)
  validation {
    condition     = length(var.trainer_principals) > 0 && !contains(var.trainer_principals, "*")
    error_message = "Want at least one ARN, and not everybody."
  }
}

variable "server_principals" {
  description = "ARNs that may take the role of the server, which only reads models and artifacts."
  type        = list(string)
  validation {
    condition     = length(var.server_principals) > 0 && !contains(var.server_principals, "*")
    error_message = "Want at least one ARN, and not everybody."
  }
}
